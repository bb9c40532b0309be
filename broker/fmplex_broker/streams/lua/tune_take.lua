-- Take tuning jobs whose files nobody looks through: nobody has, or longer ago than its lease; or it lies so far in the future that
-- the clock must have been set back. ARGV: lease ms, how many at most. Returns their ids.
local lease_ms, most, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local function numbered(n) return string.format('%d', n) end
local ids, out = redis.call('ZRANGEBYSCORE', UNCHECKED, '-inf', numbered(now), 'LIMIT', 0, most), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', UNCHECKED, numbered(now + 2 * lease_ms), '+inf', 'LIMIT', 0, most)) do
  ids[#ids + 1] = id
end
for i = 1, math.min(#ids, most) do
  if redis.call('EXISTS', tune_key(ids[i])) == 1 then
    redis.call('ZADD', UNCHECKED, numbered(now + lease_ms), ids[i])
    redis.call('HINCRBY', tune_key(ids[i]), 'checks', 1)
    out[#out + 1] = ids[i]
  else redis.call('ZREM', UNCHECKED, ids[i]) end
end
return out
