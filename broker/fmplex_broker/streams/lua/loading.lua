-- Say which versions a worker is loading, so that its death can be counted against them.
-- ARGV: worker, "vfm version" lines of all that it loads now, then a vFM and a version.
-- Returns how many workers have lately died while they loaded that version.
local me, vfm, version, now = ARGV[1], ARGV[3], ARGV[4], now_ms()
if lease(me) <= 0 then return 0 end
if ARGV[2] == '' then redis.call('HDEL', P .. 'held:' .. me, '#load')
else redis.call('HSET', P .. 'held:' .. me, '#load', ARGV[2]) end
local count = deaths(vfm, version, now)
-- Nobody may live long enough to take over from the dead while each one dies as it starts: they count before that.
for _, w in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now)) do
  for line in string.gmatch(redis.call('HGET', P .. 'held:' .. w, '#load') or '', '[^\n]+') do
    if line == vfm .. ' ' .. version then count = count + 1 end
  end
end
return count
