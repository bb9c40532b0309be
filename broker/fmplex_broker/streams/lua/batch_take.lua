-- Take open batches that nobody feeds: the lease of their holder has run out, or lies so far in the future that the clock must have
-- been set back. ARGV: token of this take, lease ms, how many at most. The holder of a batch is `<token>-<its number in this take>`:
-- each take has a holder of its own, also one that the server forgot when it died.
-- Returns {server ms, id, holder, id, holder, …}.
local token, lease_ms, most, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), now_ms()
local open, out = P .. 'batches-open', {now}
local function numbered(n) return string.format('%d', n) end
local ids = redis.call('ZRANGEBYSCORE', open, '-inf', numbered(now), 'LIMIT', 0, most)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', open, numbered(now + 2 * lease_ms), '+inf', 'LIMIT', 0, most)) do
  ids[#ids + 1] = id
end
for i = 1, math.min(#ids, most) do
  local id, batch = ids[i], P .. 'batch:' .. ids[i]
  if redis.call('EXISTS', batch) == 1 then
    local holder = token .. '-' .. i
    redis.call('HSET', batch, 'holder', holder)
    redis.call('HINCRBY', batch, 'takes', 1)
    redis.call('ZADD', open, numbered(now + lease_ms), id)
    out[#out + 1], out[#out + 2] = id, holder
  else redis.call('ZREM', open, id) end  -- so old that its record has gone
end
return out
