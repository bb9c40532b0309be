-- Renew a lease. Revives an expired one, never a condemned or absent one. Server time is the only clock for deadlines.
-- ARGV: worker, lease ms. Returns {state, server ms, changes}: ok | lost.
local now = now_ms()
if lease(ARGV[1]) <= 0 then return {'lost', now, '0'} end
redis.call('ZADD', P .. 'leases', 'XX', now + tonumber(ARGV[2]), ARGV[1])
return {'ok', now, redis.call('HGET', VFMS, ':changes') or '0'}
