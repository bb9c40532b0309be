-- Renew a lease. Revives an expired one, never a condemned or absent one. Server time is the only clock for deadlines.
-- ARGV: worker, lease ms. Returns {state, server ms, changes}: ok | lost.
local now, leases, last = now_ms(), P .. 'leases', lease(ARGV[1])
if last <= 0 then return {'lost', now, '0'} end
local back = last - tonumber(ARGV[2]) - now  -- my last beat is so far in the future: the clock was set back
if back > 0 then
  -- All leases go back with it: else nobody would notice for so long that a worker is dead.
  local all = redis.call('ZRANGE', leases, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    local ends = tonumber(all[i + 1])
    if ends > 0 then redis.call('ZADD', leases, 'XX', string.format('%d', math.max(ends - back, 1)), all[i]) end
  end
end
redis.call('ZADD', leases, 'XX', now + tonumber(ARGV[2]), ARGV[1])
return {'ok', now, redis.call('HGET', VFMS, ':changes') or '0'}
