"""Every header name, once. The same names on NATS and HTTP unless a comment says otherwise."""

CONTENT_TYPE = "Content-Type"
ACCEPT = "Accept"

TENANT = "X-Tenant-ID"
USER = "X-User-ID"
SCOPES = "X-Scopes"
CORRELATION_ID = "X-Correlation-ID"
REQUEST_ID = "X-Request-ID"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

IDEMPOTENCY_KEY = "Idempotency-Key"
BODY_DIGEST = "Body-Digest"
RETRY_AFTER = "Retry-After"  # whole seconds

# On a job that was sent again: by a replay (its id), by a redrive (its number).
REPLAY = "Replay"
REPLAY_OF = "Replay-Of"  # on a forced one, which is a job of its own: the job that was the first
REDRIVE = "Redrive"
ORIGINAL_TRACEPARENT = "Original-Traceparent"  # the trace of the message that is sent again, to link to

# NATS only.
DEADLINE = "Deadline"  # absolute unix milliseconds
OUTPUT_TO = "Output-To"
REPLY_TO = "Reply-To"
CHUNK = "Chunk"
ATTEMPT = "Attempt"
CHUNK_END = "Chunk-End"
ERROR_CODE = "Nats-Service-Error-Code"
ERROR = "Nats-Service-Error"
EXPECTED_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_ID = "Nats-Msg-Id"

# On a dead letter, beside the headers of the message that died.
DEAD_CODE = "Dead-Letter-Code"
DEAD_REASON = "Dead-Letter-Reason"
DEAD_ATTEMPTS = "Dead-Letter-Attempts"
DEAD_AT = "Dead-Letter-At"
DEAD_SUBJECT = "Dead-Letter-Subject"
DEAD_SEQUENCE = "Dead-Letter-Sequence"  # where the original stands in its stream

# HTTP only.
AUTHORIZATION = "Authorization"
CONTENT_LENGTH = "Content-Length"
LAST_EVENT_ID = "Last-Event-ID"
LOCATION = "Location"
PREFER = "Prefer"
PREFERENCE_APPLIED = "Preference-Applied"
REQUEST_TIMEOUT = "Request-Timeout"  # seconds
WWW_AUTHENTICATE = "WWW-Authenticate"
