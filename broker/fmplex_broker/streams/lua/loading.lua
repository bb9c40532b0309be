-- Say which versions a worker is loading, so that its death can be counted against them.
-- ARGV: worker, "vfm version" lines of all that it loads already, vFM, version, what it does with that: begin, or try | insist for
-- what is on offer, | end.
-- Returns {deaths, trying}: how many workers have lately died while they loaded that version, and the worker to wait for, or ''. An
-- offer that nobody has accepted yet is tried by one worker at a time, so that not all die of it at once; who insists has waited long
-- enough. deaths = -1: it is not on offer any more.
local me, lines, vfm, version, does, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], now_ms()
if lease(me) <= 0 then return {0, ''} end
if (does == 'try' or does == 'insist') and not on_offer(vfm, version) then return {-1, ''} end
local line = vfm .. ' ' .. version

local function loads_it(worker)
  local loading = '\n' .. (redis.call('HGET', P .. 'held:' .. worker, '#load') or '') .. '\n'
  return string.find(loading, '\n' .. line .. '\n', 1, true) ~= nil
end

-- Of an offer the dead count before anybody has taken over from them: nobody may live long enough for that while each one dies as
-- it starts.
local count, trying, new = deaths(vfm, version, now), '', untried(vfm, version)
local workers = redis.call('ZRANGE', P .. 'leases', 0, -1, 'WITHSCORES')
for i = 1, #workers, 2 do
  if new and workers[i] ~= me and loads_it(workers[i]) then
    if tonumber(workers[i + 1]) <= now then count = count + 1 else trying = workers[i] end
  end
end
if does == 'insist' or does == 'end' then trying = '' end
if does ~= 'end' and trying == '' then lines = lines == '' and line or lines .. '\n' .. line end
if lines == '' then redis.call('HDEL', P .. 'held:' .. me, '#load')
else redis.call('HSET', P .. 'held:' .. me, '#load', lines) end
return {count, trying}
