-- ARGV: key, lock ms, token, most locks, 1 when this is the first look. Replies {'hit', value, version, ms left},
-- {'locked', lock}, {'busy'} or {'full'}.
local key, name = ARGV[1], entry(ARGV[1])
local found = redis.call('HMGET', name, 'v', 'n')
if found[1] then
  if ARGV[5] == '1' then
    redis.call('HINCRBY', meta, 'hits', 1)
  end
  return {'hit', found[1], tonumber(found[2]), redis.call('PTTL', name)}
end
if ARGV[5] == '1' then
  redis.call('HINCRBY', meta, 'misses', 1)
end
local epoch = redis.call('HGET', meta, 'epoch') or '0'
local held = redis.call('GET', lock_of(key))
if held and string.match(held, '^%d+') == epoch then
  return {'busy'}
end
redis.call('ZREMRANGEBYSCORE', locks, '-inf', text(now))
if redis.call('ZCARD', locks) >= tonumber(ARGV[4]) then
  return {'full'}
end
local lock = epoch .. '.' .. ARGV[3]
redis.call('SET', lock_of(key), lock, 'PX', ARGV[2])
redis.call('ZADD', locks, text(now + tonumber(ARGV[2])), key)
return {'locked', lock}
