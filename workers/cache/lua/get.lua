-- ARGV: the most bytes of values together, then keys. Replies {value, version, ms left or -1} or {} for each.
local most, total, hits, out = tonumber(ARGV[1]), 0, 0, {}
for at = 2, #ARGV do
  local name = entry(ARGV[at])
  local found = redis.call('HMGET', name, 'v', 'n')
  if found[1] then
    total = total + #found[1]
    if total > most then
      return {'too large'}
    end
    hits = hits + 1
    out[at - 1] = {found[1], tonumber(found[2]), redis.call('PTTL', name)}
  else
    out[at - 1] = {}
  end
end
if hits > 0 then
  redis.call('HINCRBY', meta, 'hits', hits)
end
if hits < #ARGV - 1 then
  redis.call('HINCRBY', meta, 'misses', #ARGV - 1 - hits)
end
return out
