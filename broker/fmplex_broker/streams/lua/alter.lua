-- Change weight, limits or SLO of a vFM; makes no version.
-- ARGV: vfm, generation expected, spec JSON, max_pending, weight, rate, bytes that may wait (0: the usual), the targets.
-- Returns {state, generation}: ok | unknown | stale.
local r = record(ARGV[1])
if not r then return {'unknown', 0} end
-- An offered version carries the values of when it was offered: change it once it serves, or is refused.
if r.generation ~= tonumber(ARGV[2]) or redis.call('HEXISTS', VFMS, ARGV[1] .. ':next') == 1 then return {'stale', r.generation} end
set_terms(r, 4)
r.generation = r.generation + 1
redis.call('HSET', VFMS, ARGV[1] .. ':spec', ARGV[3])
put_record(ARGV[1], r)
return {'ok', r.generation}
