--!df flags=allow-undeclared-keys
-- What every script of the cache begins with. KEYS[1] is the tenant's prefix, `{tenant}:cache`; every key
-- below begins with it, so a script cannot reach another tenant's keys, and all of them live in one slot of a cluster.
--   :e:<key>  the entry (hash: v value, n version); Valkey itself expires it
--   :s sizes (hash key -> bytes)   :l names (zset, by name)   :x ends (zset key -> unix ms)   :t tags (hash key -> list)
--   :g:<tag>  keys of a tag (zset, by name)   :k:<key>  lock   :q  locks (zset key -> unix ms)
--   :m  bytes, version, epoch, hits, misses
-- The index outlives an entry that expired: it is swept, a bounded number with each call, so sizes stay exact.
local base = KEYS[1]
local meta, sizes, names, ends = base .. ':m', base .. ':s', base .. ':l', base .. ':x'
local tags, locks = base .. ':t', base .. ':q'

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

local function text(number)  -- Lua 5.1 would write 1.7e+15
  return string.format('%.0f', number)
end

local function entry(key) return base .. ':e:' .. key end
local function tagged(tag) return base .. ':g:' .. tag end
local function lock_of(key) return base .. ':k:' .. key end

-- Grows for ever, also when the server comes back empty: the time in microseconds, or one more than the last.
local function next_version()
  local version = math.max(now_us, tonumber(redis.call('HGET', meta, 'version') or 0) + 1)
  redis.call('HSET', meta, 'version', text(version))
  return version
end

local function version_of(key)  -- 0 = not there
  return tonumber(redis.call('HGET', entry(key), 'n') or 0)
end

local function untag(key)
  local packed = redis.call('HGET', tags, key)
  if packed then
    for _, tag in ipairs(cmsgpack.unpack(packed)) do
      redis.call('ZREM', tagged(tag), key)
    end
    redis.call('HDEL', tags, key)
  end
end

local function unlock(key)
  if redis.call('ZREM', locks, key) == 1 then
    redis.call('DEL', lock_of(key))
  end
end

local function drop(key)
  local size = redis.call('HGET', sizes, key)
  if size then
    redis.call('HINCRBY', meta, 'bytes', '-' .. size)
    redis.call('HDEL', sizes, key)
    redis.call('ZREM', names, key)
    redis.call('ZREM', ends, key)
    untag(key)
  end
  redis.call('UNLINK', entry(key))
end

-- Drops the index of entries that have expired, at most `most` of them; true when there may be more.
local function sweep(most)
  local due = redis.call('ZRANGEBYSCORE', ends, '-inf', '(' .. text(now), 'LIMIT', 0, most)
  for _, key in ipairs(due) do
    drop(key)
  end
  return #due == most
end
