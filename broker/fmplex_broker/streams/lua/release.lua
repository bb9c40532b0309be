-- Give unstarted jobs back, the attempt taken back with them.
-- ARGV: worker, then 2 a job: flow, entry. Returns how many were mine.
local me, now, given = ARGV[1], now_ms(), 0
for i = 2, #ARGV, 2 do
  local p = pending(ARGV[i], ARGV[i + 1], ARGV[i + 1], 1, me)[1]
  if p then
    give_back(ARGV[i], ARGV[i + 1], p[4] - 1, now)
    given = given + 1
  end
end
if given > 0 then ring() end
return given
