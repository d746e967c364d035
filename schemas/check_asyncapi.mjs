// Reads an AsyncAPI document with its reference parser; NODE_PATH says where @asyncapi/parser is. `make asyncapi` runs it.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const { Parser } = createRequire(import.meta.url)("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const errors = diagnostics.filter((found) => found.severity === 0);
for (const found of diagnostics) {
  console.log(`${["error", "warning", "info", "hint"][found.severity]} ${found.path.join(".")}: ${found.message}`);
}
console.log(document && errors.length === 0 ? "valid" : "not valid");
process.exit(document && errors.length === 0 ? 0 : 1);
