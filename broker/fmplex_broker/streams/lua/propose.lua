-- Offer a version of a vFM to the workers. A vFM that serves goes on serving its old version meanwhile.
-- ARGV: vfm, version, spec JSON, generation expected (-1: the vFM must be new), max_pending, weight, rate,
-- bytes that may wait (0: the usual), the targets.
-- Returns {state, generation}: ok | exists | unknown | stale | draining.
local vfm, version, spec, expect = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local r = record(vfm)
if r and r.status == 'draining' then return {'draining', r.generation} end
if expect < 0 then
  if r and r.status ~= 'rejected' then return {'exists', r.generation} end
  r = {status = 'validating', version = '', generation = r and r.generation + 1 or 1}
  set_terms(r, 5)
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
