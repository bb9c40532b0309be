-- End many jobs: reply, acknowledge and delete in one step. The XPENDING look is owner check and fence in one.
-- ARGV: worker, then 8 a job: flow, entry, job, inbox, payload, what its entry has stored, and beyond its estimate the
-- units that it has cost, and the tokens that its rate is charged.
-- Per job 1 (settled) or 0 (not mine any more).
local me, out, beyond, tokens, now = ARGV[1], {}, {}, {}, now_ms()
local MOST = 1e9

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

-- What a worker has measured is no better than its clocks: one that is no number counts nothing.
local function measured(value)
  local n = tonumber(value) or 0
  return n == n and within(n, -MOST, MOST) or 0
end

for i = 2, #ARGV, 8 do
  local flow, id, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local mine = #pending(flow, id, id, 1, me) == 1
  if mine then
    drop_entry(flow, id, job, ARGV[i + 5])  -- first, so that a full server drains
    reply(flow, ARGV[i + 3], job, ARGV[i + 4])
    beyond[flow] = (beyond[flow] or 0) + measured(ARGV[i + 6])
    tokens[flow] = (tokens[flow] or 0) + measured(ARGV[i + 7])
  end
  out[#out + 1] = mine and 1 or 0
end
for flow, units in pairs(beyond) do true_up(flow, units) end
for flow, units in pairs(tokens) do correct_bucket(flow, units, now) end
return out
