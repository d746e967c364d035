-- Statements of rag. tenant_id is never named: its default and the row-level policy set and check it.

-- name: get_collection
SELECT collection_id, name, model, revision, dimensions, documents, chunks, length, version
FROM rag_collections WHERE name = $1

-- name: create_collection
INSERT INTO rag_collections (name, model, revision, dimensions) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, name) DO NOTHING

-- Only an empty collection may take up another model; change_collection refuses a mix.
-- name: adopt_model
UPDATE rag_collections SET model = $2, revision = $3, dimensions = $4
WHERE collection_id = $1 AND chunks = 0

-- name: change_collection
UPDATE rag_collections
SET documents = documents + $3, chunks = chunks + $4, length = length + $5, version = version + 1
WHERE collection_id = $1 AND ($2::text IS NULL OR revision = $2)

-- name: find_source
SELECT d.document_id, d.digest, d.metadata, d.chunks, d.tokens
FROM rag_documents d JOIN rag_collections c USING (collection_id)
WHERE c.name = $1 AND d.source_id = $2

-- Vectors that the collection already has, by the digest of their words.
-- name: known_vectors
SELECT DISTINCT ON (digest) digest, embedding
FROM rag_chunks WHERE collection_id = $1 AND digest = ANY($2::bytea[])

-- Either of the two keys may be met first by a writer of the same document.
-- name: create_document
INSERT INTO rag_documents (document_id, collection_id, source_id) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING

-- name: lock_source
SELECT document_no, document_id, digest, metadata, chunks, length, tokens, version
FROM rag_documents WHERE collection_id = $1 AND source_id = $2 FOR UPDATE

-- name: lock_document
SELECT d.document_no, d.document_id, d.collection_id, d.source_id, d.chunks, d.length, d.version, c.name AS collection
FROM rag_documents d JOIN rag_collections c USING (collection_id)
WHERE d.document_id = $1 FOR UPDATE OF d

-- name: described
SELECT document_no, document_id, collection_id, metadata, chunks, tokens, version
FROM rag_documents WHERE document_id = $1

-- name: describe_document
UPDATE rag_documents SET metadata = $2, version = version + 1, updated_at = now() WHERE document_no = $1

-- name: fill_document
UPDATE rag_documents
SET title = $2, metadata = $3, digest = $4, text = $5, characters = $6, chunks = $7, length = $8, tokens = $9,
    version = version + 1, updated_at = now()
WHERE document_no = $1 RETURNING version

-- name: remove_document
DELETE FROM rag_documents WHERE document_no = $1

-- name: remove_chunks
DELETE FROM rag_chunks WHERE document_no = $1

-- The lexemes of a chunk are made from its heading and text, so the same expression finds its postings again.
-- name: insert_postings
WITH words AS (
    SELECT c.chunk_no, w.lexeme, cardinality(w.positions) AS tf
    FROM rag_chunks c, unnest(to_tsvector('english', c.heading || E'\n' || c.text)) w
    WHERE c.document_no = $1 AND c.ordinal >= $3 AND c.ordinal < $4
), put AS (
    INSERT INTO rag_postings (collection_id, chunk_no, term, tf, length)
    SELECT $2, chunk_no, lexeme, tf, sum(tf) OVER (PARTITION BY chunk_no) FROM words ORDER BY lexeme, chunk_no
    RETURNING term, tf
)
SELECT term, count(*) AS chunks, sum(tf)::bigint AS length FROM put GROUP BY term

-- name: remove_postings
WITH words AS (
    SELECT c.chunk_no, w.lexeme
    FROM rag_chunks c, unnest(to_tsvector('english', c.heading || E'\n' || c.text)) w
    WHERE c.document_no = $1 AND c.ordinal >= $3 AND c.ordinal < $4
), gone AS (
    DELETE FROM rag_postings p USING words w
    WHERE p.collection_id = $2 AND p.term = w.lexeme AND p.chunk_no = w.chunk_no
    RETURNING p.term
)
SELECT term, count(*) AS chunks FROM gone GROUP BY term

-- Sorted, so that two documents never wait for each other in a circle.
-- name: change_terms
INSERT INTO rag_terms (collection_id, term, chunks)
SELECT $1, t.term, t.change FROM unnest($2::text[], $3::bigint[]) AS t (term, change) ORDER BY t.term COLLATE "C"
ON CONFLICT (collection_id, term) DO UPDATE SET chunks = rag_terms.chunks + excluded.chunks

-- name: forget_terms
DELETE FROM rag_terms WHERE collection_id = $1 AND term = ANY($2::text[]) AND chunks <= 0

-- name: get_document
SELECT d.document_id, d.source_id, c.name AS collection, d.title, d.metadata, d.chunks, d.tokens, d.characters,
       d.version, d.created_at, d.updated_at, CASE WHEN $2 THEN d.text END AS text
FROM rag_documents d JOIN rag_collections c USING (collection_id) WHERE d.document_id = $1

-- Where a quote must stand: counted in characters from 0.
-- name: quoted
SELECT substr(text, $2::int + 1, $3::int - $2::int) = $4 FROM rag_documents WHERE document_id = $1

-- name: list_documents
SELECT d.document_no, d.document_id, d.source_id, c.name AS collection, d.title, d.metadata, d.chunks, d.tokens,
       d.characters, d.version, d.created_at, d.updated_at, NULL::text AS text
FROM rag_documents d JOIN rag_collections c USING (collection_id)
WHERE d.document_no > $1 AND ($2::text IS NULL OR c.name = $2)
ORDER BY d.document_no LIMIT $3

-- name: lexemes
SELECT tsvector_to_array(to_tsvector('english', $1))

-- How many chunks a filter leaves: this, not the planner, decides between exact search and the HNSW index.
-- name: count_filtered
SELECT coalesce(sum(chunks), 0)::bigint FROM rag_documents WHERE collection_id = $1 AND metadata @> $2

-- Two stages. Candidates: the best by the query's rare terms (in at most a tenth of the chunks, always the two rarest)
-- and the nearest by vector. Then full BM25 (k1 1.2, b .75) and cosine for their union, each scaled to 0..1, half each.
-- The postings of rare terms are read once, for both stages; common terms are probed for the candidates alone.
-- $1 collection, $2 lexemes, $3 vector, $4 chunks in the collection, $5 mean length, $6 weight of the words,
-- $7 results, $8 filters or null.
-- name: search
WITH query AS MATERIALIZED (
    SELECT term, ln(1 + ($4::float8 - chunks + 0.5) / (chunks + 0.5)) AS idf,
           chunks <= $4::float8 * 0.1 OR row_number() OVER (ORDER BY chunks, term) <= 2 AS rare
    FROM rag_terms WHERE collection_id = $1 AND term = ANY($2::text[])
), allowed AS (
    SELECT document_no FROM rag_documents WHERE collection_id = $1 AND metadata @> $8::jsonb
), posting AS MATERIALIZED (
    SELECT p.chunk_no, q.idf * p.tf * 2.2::float8
               / (p.tf + 1.2::float8 * (0.25::float8 + 0.75::float8 * p.length / $5::float8)) AS weight
    FROM query q JOIN rag_postings p ON p.collection_id = $1 AND p.term = q.term
    WHERE q.rare
      AND ($8::jsonb IS NULL OR p.chunk_no IN (SELECT chunk_no FROM rag_chunks JOIN allowed USING (document_no)))
), lexical_best AS (
    SELECT chunk_no FROM posting GROUP BY chunk_no ORDER BY sum(weight) DESC, chunk_no LIMIT 200
), near AS MATERIALIZED (
    {near}
), candidate AS MATERIALIZED (
    SELECT chunk_no FROM lexical_best UNION SELECT chunk_no FROM near
), weighed AS (
    SELECT chunk_no, weight FROM posting JOIN candidate USING (chunk_no)
    UNION ALL
    SELECT k.chunk_no, q.idf * p.tf * 2.2::float8
               / (p.tf + 1.2::float8 * (0.25::float8 + 0.75::float8 * p.length / $5::float8))
    FROM candidate k CROSS JOIN query q CROSS JOIN LATERAL (
        SELECT tf, length FROM rag_postings
        WHERE collection_id = $1 AND term = q.term AND chunk_no = k.chunk_no OFFSET 0
    ) p
    WHERE NOT q.rare
), lexical AS (
    SELECT chunk_no, sum(weight) AS bm25 FROM weighed GROUP BY chunk_no
), scored AS MATERIALIZED (
    SELECT k.chunk_no, coalesce(l.bm25, 0) AS bm25,
           CASE WHEN $3::vector IS NULL THEN 0 ELSE 1 - (c.embedding <=> $3::vector) END AS cosine
    FROM candidate k JOIN rag_chunks c USING (chunk_no) LEFT JOIN lexical l USING (chunk_no)
), fused AS (
    SELECT chunk_no,
           $6::float8 * coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0)
           + (1 - $6::float8) * coalesce((cosine - min(cosine) OVER ())
               / nullif(max(cosine) OVER () - min(cosine) OVER (), 0), 0) AS score
    FROM scored
), best AS (
    SELECT chunk_no, score FROM fused ORDER BY score DESC, chunk_no LIMIT $7
)
SELECT d.document_id, d.source_id, d.title, c.ordinal, c.heading, c.text, c.start_at, c.end_at, c.page, b.score
FROM best b JOIN rag_chunks c USING (chunk_no) JOIN rag_documents d USING (document_no)
ORDER BY b.score DESC, c.chunk_no

-- + 0 keeps the planner from the HNSW index: at this size every vector of the collection is read.
-- name: near_exact
SELECT c.chunk_no FROM rag_chunks c
    WHERE c.collection_id = $1 AND $3::vector IS NOT NULL
      AND ($8::jsonb IS NULL OR c.document_no IN (SELECT document_no FROM allowed))
    ORDER BY (c.embedding <=> $3::vector) + 0 LIMIT 100

-- name: near_hnsw
SELECT c.chunk_no FROM rag_chunks c
    WHERE c.collection_id = $1 AND $3::vector IS NOT NULL AND vector_dims(c.embedding) = 384
      AND ($8::jsonb IS NULL OR c.document_no = ANY(ARRAY(SELECT document_no FROM allowed)))
    ORDER BY c.embedding::vector(384) <=> $3::vector(384) LIMIT 100
