-- End many jobs: reply, acknowledge and delete in one step. The XPENDING look is owner check and fence in one.
-- ARGV: worker, result_ttl ms, then 6 a job: flow, entry, job, inbox, payload, units that it has cost beyond its estimate.
-- Per job 1 (settled) or 0 (not mine any more).
local me, ttl, out, beyond = ARGV[1], tonumber(ARGV[2]), {}, {}

-- The claim advanced the flow's virtual time by an estimate; what its jobs have really cost is put right here, once for each job
-- and whichever worker ran it.
local function true_up(flow, units)
  local class, vfm = flow_parts(flow)
  local r = record(vfm)
  if not r or units == 0 then return end
  local at, mean = virtual(class, vfm)
  local score = tonumber(redis.call('ZSCORE', P .. 'ready:' .. class, vfm) or at)
  set_virtual(class, vfm, at + units / r.weight, mean)
  -- A flow that was lifted to the present when it came back has been forgiven what it would get back here.
  if units > 0 or score <= at then
    redis.call('ZADD', P .. 'ready:' .. class, 'XX', 'INCR', string.format('%.17g', units / r.weight), vfm)
  end
end

for i = 3, #ARGV, 6 do
  local flow, id, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local mine = #pending(flow, id, id, 1, me) == 1
  if mine then
    drop_entry(flow, id, job)  -- first, so that a full server drains
    reply(ARGV[i + 3], job, ARGV[i + 4], ttl)
    beyond[flow] = (beyond[flow] or 0) + tonumber(ARGV[i + 5])
  end
  out[#out + 1] = mine and 1 or 0
end
for flow, units in pairs(beyond) do true_up(flow, units) end
return out
