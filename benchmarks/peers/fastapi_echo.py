"""A plain FastAPI echo on the server that the bridge runs on: `python -m benchmarks.peers.fastapi_echo PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

from benchmarks.contract import Echo

app = FastAPI()


@app.post("/echo")
async def echo(message: Echo) -> Echo:
    return message


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
