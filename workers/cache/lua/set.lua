-- ARGV: most keys, most bytes, swept a call, then for each entry: key, value, ttl ms (0 = none), if_absent (0, 1),
-- if_version (-1 = any), lock ('' = none), number of tags, tags. All entries are written or, over the quota, none.
-- Replies {written, version} for each, or {'sweep'}: call again, or {'keys' | 'bytes'}: over the quota.
local more = sweep(tonumber(ARGV[3]))
local epoch = redis.call('HGET', meta, 'epoch') or '0'
local writes, at, keys_more, bytes_more = {}, 4, 0, 0

while at <= #ARGV do
  local key, value, lock = ARGV[at], ARGV[at + 1], ARGV[at + 5]
  local write = {key = key, value = value, ttl = tonumber(ARGV[at + 2]), tags = {}, version = version_of(key)}
  local if_version = tonumber(ARGV[at + 4])
  write.holds = not (ARGV[at + 3] == '1' and write.version > 0)
    and (if_version < 0 or if_version == write.version)
    and (lock == '' or (redis.call('GET', lock_of(key)) == lock and string.match(lock, '^%d+') == epoch))
  write.size = #key + #value
  local count = tonumber(ARGV[at + 6])
  for n = 1, count do
    write.tags[n] = ARGV[at + 6 + n]
    write.size = write.size + #write.tags[n]
  end
  if write.holds then
    local before = redis.call('HGET', sizes, key)
    bytes_more = bytes_more + write.size - tonumber(before or 0)
    keys_more = keys_more + (before and 0 or 1)
  end
  writes[#writes + 1] = write
  at = at + 7 + count
end

local over = nil
if keys_more > 0 and redis.call('ZCARD', names) + keys_more > tonumber(ARGV[1]) then
  over = 'keys'
elseif bytes_more > 0 and tonumber(redis.call('HGET', meta, 'bytes') or 0) + bytes_more > tonumber(ARGV[2]) then
  over = 'bytes'
end
if over then
  return {more and 'sweep' or over}
end

local out = {}
for n, write in ipairs(writes) do
  if write.holds then
    local key, name = write.key, entry(write.key)
    drop(key)
    write.version = next_version()
    redis.call('HSET', name, 'v', write.value, 'n', text(write.version))
    redis.call('HSET', sizes, key, write.size)
    redis.call('HINCRBY', meta, 'bytes', write.size)
    redis.call('ZADD', names, 0, key)
    if write.ttl > 0 then
      redis.call('PEXPIREAT', name, text(now + write.ttl))
      redis.call('ZADD', ends, text(now + write.ttl), key)
    end
    for _, tag in ipairs(write.tags) do
      redis.call('ZADD', tagged(tag), 0, key)
    end
    if #write.tags > 0 then
      redis.call('HSET', tags, key, cmsgpack.pack(write.tags))
    end
    unlock(key)
  end
  out[n] = {write.holds and 1 or 0, write.version}
end
return out
