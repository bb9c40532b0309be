-- End many jobs: reply, acknowledge and delete in one step. The XPENDING look is owner check and fence in one.
-- ARGV: worker, result_ttl ms, then 5 a job: flow, entry, job, inbox, payload. Per job 1 (settled) or 0 (not mine any more).
local me, ttl, out = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV, 5 do
  local flow, id, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local mine = #pending(flow, id, id, 1, me) == 1
  if mine then
    drop_entry(flow, id, job)  -- first, so that a full server drains
    reply(ARGV[i + 3], job, ARGV[i + 4], ttl)
  end
  out[#out + 1] = mine and 1 or 0
end
return out
