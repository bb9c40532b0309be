-- Give unstarted jobs back, the attempt taken back with them.
-- ARGV: worker, epoch, then 2 a job: flow, entry. Returns how many were mine, -1 if a recovery has overtaken this call: it may
-- come so late that I have claimed the same jobs again and run them.
local me, now, given = ARGV[1], now_ms(), 0
local epoch = redis.call('HGET', P .. 'held:' .. me, '#')
if epoch and epoch ~= ARGV[2] then return -1 end
for i = 3, #ARGV, 2 do
  local p = pending(ARGV[i], ARGV[i + 1], ARGV[i + 1], 1, me)[1]
  if p then
    give_back(ARGV[i], ARGV[i + 1], p[4] - 1, now)
    given = given + 1
  end
end
if given > 0 then ring() end
return given
