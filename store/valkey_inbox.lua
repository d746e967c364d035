-- An idempotency record: KEYS[1] the record (hash), KEYS[2] the records of its operation by time (zset).
-- ARGV[1] says what to do; claim: digest, owner, lease ms, kept ms, kept records, expired a call
--                         renew: owner, lease ms;  finish: owner, kind, body;  release: owner
local record, index = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local action, who = ARGV[1], ARGV[2]

if action ~= 'claim' then
  if redis.call('HGET', record, 'owner') ~= who or redis.call('HGET', record, 'state') ~= 'claimed' then
    return 0
  end
  if action == 'renew' then
    redis.call('HSET', record, 'until', now + tonumber(ARGV[3]))
  elseif action == 'finish' then
    redis.call('HSET', record, 'state', 'done', ARGV[3], ARGV[4])
  else
    redis.call('HSET', record, 'state', 'free')
  end
  return 1
end

local digest, owner, lease, kept = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local held = redis.call('HMGET', record, 'digest', 'state', 'owner', 'until', 'attempts', 'reply', 'fault')
if held[1] then
  if held[1] ~= digest then
    return {'conflict'}
  elseif held[2] == 'done' then
    return {'done', tonumber(held[5]), held[6], held[7]}
  elseif held[2] == 'claimed' and held[3] ~= owner and tonumber(held[4]) > now then
    return {'waiting'}
  end
end
local attempts = tonumber(held[5] or 0)
if held[2] ~= 'claimed' or held[3] ~= owner then
  attempts = attempts + 1
end
redis.call('HSET', record, 'digest', digest, 'state', 'claimed', 'owner', owner, 'until', now + lease, 'attempts', attempts)
redis.call('PEXPIRE', record, kept)
redis.call('ZADD', index, now, record)
redis.call('PEXPIRE', index, kept)

-- The oldest go when their time is over or there are too many: a few with every claim, so that each call is short.
local excess = redis.call('ZCARD', index) - tonumber(ARGV[6])
for _ = 1, tonumber(ARGV[7]) do
  local oldest = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')
  if not oldest[1] or oldest[1] == record or (excess <= 0 and tonumber(oldest[2]) > now - kept) then
    break
  end
  redis.call('ZREM', index, oldest[1])
  redis.call('UNLINK', oldest[1])
  excess = excess - 1
end
return {'claimed', attempts}
