-- ARGV: key. Replies {1 if it was there, a version that is newer than the entry's}. Ends its lock, so that a value
-- computed before is not written after.
local there = version_of(ARGV[1]) > 0
drop(ARGV[1])
unlock(ARGV[1])
return {there and 1 or 0, next_version()}
