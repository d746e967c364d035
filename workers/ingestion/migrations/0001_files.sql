-- Files as their owners see them: where each stands, stage by stage.

CREATE TABLE files (
    tenant_id text NOT NULL,
    file_id text NOT NULL,
    name text NOT NULL,                  -- the uploader's, for display only
    size bigint NOT NULL CHECK (size >= 0),
    sha256 text NOT NULL,
    type text NOT NULL,
    collection text NOT NULL,
    source_id text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL CHECK (status IN ('received', 'processing', 'indexed', 'quarantined')),
    stages jsonb NOT NULL,               -- {"extracted": {"status": "done", "at": "...", "error": null}, ...}
    reason text,                         -- why it is quarantined
    document_id text,
    chunks integer,
    pages integer,
    job_id text,
    index_job_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, file_id)
);
SELECT enable_tenancy('files');
