-- After any failed or cancelled claim or release: start a new epoch (so that a delayed claim of the old one lands as `stale`)
-- and give back every entry pending under me that I do not know.
-- ARGV: worker, new epoch, then 2 a known job: flow, entry. Returns how many were given back, -1 if my lease is gone.
local me, now, given, known = ARGV[1], now_ms(), 0, {}
if lease(me) <= 0 then return -1 end
local held = P .. 'held:' .. me
-- A recovery that comes after a later one must not turn the epoch back, nor give away what was claimed since.
if tonumber(redis.call('HGET', held, '#') or 0) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', held, '#', ARGV[2])
for i = 3, #ARGV, 2 do known[ARGV[i] .. ' ' .. ARGV[i + 1]] = true end
for _, flow in ipairs(redis.call('HKEYS', held)) do
  if string.sub(flow, 1, 1) ~= '#' then
    local from = '-'
    while from do
      local list = pending(flow, from, '+', 500, me)
      for _, p in ipairs(list) do
        if not known[flow .. ' ' .. p[1]] then
          give_back(flow, p[1], p[4] - 1, now)
          given = given + 1
        end
      end
      from = #list == 500 and '(' .. list[500][1] or nil
    end
  end
end
if given > 0 then ring() end
return given
