-- ARGV: tag or '' (all names), the range by name (first, last as ZRANGEBYLEX has them), the version up to which entries
-- go (0 = begin: those of now), most a call. Replies {that version, dropped, the last name or '' at the end}.
local index = ARGV[1] == '' and names or tagged(ARGV[1])
local upto, most, count = tonumber(ARGV[4]), tonumber(ARGV[5]), 0
if upto == 0 then
  upto = next_version()
  redis.call('HINCRBY', meta, 'epoch', 1)  -- no lock that was taken before may write any more
end
local found = redis.call('ZRANGEBYLEX', index, ARGV[2], ARGV[3], 'LIMIT', 0, most)
for _, key in ipairs(found) do
  local version = version_of(key)
  if version <= upto then
    drop(key)
    if version > 0 then
      count = count + 1
    end
  end
end
return {upto, count, #found == most and found[most] or ''}
