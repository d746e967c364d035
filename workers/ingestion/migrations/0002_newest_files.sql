-- The list of a tenant's files, newest first, page by page.
CREATE INDEX files_newest ON files (tenant_id, created_at DESC, file_id DESC);
