-- ARGV: swept a call. Replies {hits, misses, keys, bytes}, or {'sweep'}: call again.
if sweep(tonumber(ARGV[1])) then
  return {'sweep'}
end
local found = redis.call('HMGET', meta, 'hits', 'misses', 'bytes')
return {tonumber(found[1] or 0), tonumber(found[2] or 0), redis.call('ZCARD', names), tonumber(found[3] or 0)}
