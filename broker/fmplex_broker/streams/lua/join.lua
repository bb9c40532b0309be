-- Start a worker's life: a lease and epoch 1. Worker ids are new for every incarnation.
-- ARGV: worker, lease ms. Returns {state, server ms, changes}: ok | taken.
local now = now_ms()
if redis.call('ZADD', P .. 'leases', 'NX', now + tonumber(ARGV[2]), ARGV[1]) == 0 then return {'taken', now, '0'} end
redis.call('HSET', P .. 'held:' .. ARGV[1], '#', '1')
return {'ok', now, redis.call('HGET', VFMS, ':changes') or '0'}
