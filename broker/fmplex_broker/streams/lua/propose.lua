-- Offer a version of a vFM to the workers. A vFM that serves goes on serving its old version meanwhile.
-- ARGV: vfm, version, spec JSON, generation expected (-1: the vFM must be new), max_pending, weight, rate, pass_ms,
-- bytes that may wait (0: the usual).
-- Returns {state, generation}: ok | exists | unknown | stale | draining.
local vfm, version, spec, expect = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local r = record(vfm)
if r and r.status == 'draining' then return {'draining', r.generation} end
if expect < 0 then
  if r and r.status ~= 'rejected' then return {'exists', r.generation} end
  r = {status = 'validating', version = '', generation = r and r.generation + 1 or 1,
       max_pending = tonumber(ARGV[5]), weight = tonumber(ARGV[6]), rate = tonumber(ARGV[7]), pass_ms = tonumber(ARGV[8]),
       max_bytes = tonumber(ARGV[9] or 0)}
else
  if not r then return {'unknown', 0} end
  if r.generation ~= expect then return {'stale', r.generation} end
  r.generation = r.generation + 1
end
redis.call('HSET', VFMS, vfm .. ':next', version .. '|' .. spec)
redis.call('HDEL', VFMS, vfm .. ':votes', vfm .. ':error', vfm .. ':deaths')
redis.call('SADD', P .. 'offers', vfm)
put_record(vfm, r)
return {'ok', r.generation}
