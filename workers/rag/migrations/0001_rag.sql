-- Collections, documents, chunks, and BM25's own index: postings and how many chunks hold each term.

CREATE TABLE rag_collections (
    tenant_id text COLLATE "C" NOT NULL DEFAULT current_setting('app.tenant'),
    collection_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    model text NOT NULL,
    revision text NOT NULL,         -- of the embedding model: vectors of two revisions do not mix
    dimensions integer NOT NULL,
    documents bigint NOT NULL DEFAULT 0,
    chunks bigint NOT NULL DEFAULT 0,
    length bigint NOT NULL DEFAULT 0,   -- lexemes in all chunks: BM25's average is length / chunks
    version bigint NOT NULL DEFAULT 0,  -- grows with every change: cached answers name it
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, name)
) WITH (fillfactor = 50);

CREATE TABLE rag_documents (
    tenant_id text COLLATE "C" NOT NULL DEFAULT current_setting('app.tenant'),
    document_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    document_id text COLLATE "C" NOT NULL,
    collection_id bigint NOT NULL,
    source_id text COLLATE "C" NOT NULL,
    title text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL DEFAULT '{}',
    digest bytea NOT NULL DEFAULT '',   -- of text, title and chunking: the same again changes nothing
    text text NOT NULL DEFAULT '',
    characters integer NOT NULL DEFAULT 0,
    chunks integer NOT NULL DEFAULT 0,
    length bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    version integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, document_id),
    UNIQUE (collection_id, source_id)
);
CREATE INDEX rag_documents_of_tenant ON rag_documents (tenant_id, document_no);

CREATE TABLE rag_chunks (
    tenant_id text COLLATE "C" NOT NULL DEFAULT current_setting('app.tenant'),
    chunk_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id bigint NOT NULL,
    document_no bigint NOT NULL,
    ordinal integer NOT NULL,
    start_at integer NOT NULL,      -- characters in the document's text; text = document text from start_at to end_at
    end_at integer NOT NULL,
    page integer,
    heading text NOT NULL,          -- title and heading path: indexed in front of the text, on both sides
    text text NOT NULL,
    digest bytea NOT NULL,          -- of heading and text: the same words are embedded once
    embedding vector NOT NULL,
    UNIQUE (document_no, ordinal)
);
-- In the row, not in TOAST: exact search reads every vector of a collection.
ALTER TABLE rag_chunks ALTER COLUMN embedding SET STORAGE MAIN;
CREATE INDEX rag_chunks_of_collection ON rag_chunks (collection_id, digest);
CREATE INDEX rag_chunks_hnsw_384 ON rag_chunks USING hnsw ((embedding::vector(384)) vector_cosine_ops)
    WITH (m = 16, ef_construction = 64) WHERE (vector_dims(embedding) = 384);

-- tenant_id is included so that an index-only scan can satisfy the row-level policy.
CREATE TABLE rag_postings (
    tenant_id text COLLATE "C" NOT NULL DEFAULT current_setting('app.tenant'),
    collection_id bigint NOT NULL,
    chunk_no bigint NOT NULL,
    term text COLLATE "C" NOT NULL,
    tf smallint NOT NULL,
    length smallint NOT NULL,
    PRIMARY KEY (collection_id, term, chunk_no) INCLUDE (tf, length, tenant_id)
);
ALTER TABLE rag_postings SET (autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE TABLE rag_terms (
    tenant_id text COLLATE "C" NOT NULL DEFAULT current_setting('app.tenant'),
    collection_id bigint NOT NULL,
    term text COLLATE "C" NOT NULL,
    chunks bigint NOT NULL,         -- document frequency: chunks of this collection that hold the term
    PRIMARY KEY (collection_id, term)
) WITH (fillfactor = 70);

SELECT enable_tenancy('rag_collections');
SELECT enable_tenancy('rag_documents');
SELECT enable_tenancy('rag_chunks');
SELECT enable_tenancy('rag_postings');
SELECT enable_tenancy('rag_terms');
