-- Start a worker's life: a lease and epoch 1. Worker ids are new for every incarnation.
-- ARGV: worker, lease ms, fingerprint of what it hosts, description of that, bytes that may wait on the backbone (0: the usual).
-- Returns {state, server ms, changes, description}: ok | taken | other (live workers host something else, as described).
local me, lease_ms, fingerprint, now = ARGV[1], tonumber(ARGV[2]), ARGV[3], now_ms()
local leases = P .. 'leases'
local before = hosted()
if before and before ~= fingerprint then
  if redis.call('ZCOUNT', leases, '(' .. string.format('%d', now), '+inf') > 0 then
    return {'other', now, '0', string.match(redis.call('HGET', VFMS, ':hosted'), '^[^|]*|(.*)$')}
  end
  -- Who has not been heard of for a lease may still live: it must not come back among workers that host something else.
  for _, w in ipairs(redis.call('ZRANGE', leases, 0, -1)) do redis.call('ZADD', leases, 'XX', 0, w) end
end
if redis.call('ZADD', leases, 'NX', now + lease_ms, me) == 0 then return {'taken', now, '0', ''} end
redis.call('HSET', VFMS, ':hosted', fingerprint .. '|' .. ARGV[4], ':max_bytes', ARGV[5] or 0)
redis.call('HSET', P .. 'held:' .. me, '#', '1')
return {'ok', now, redis.call('HGET', VFMS, ':changes') or '0', ''}
