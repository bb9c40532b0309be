-- Record lines that are done: which ones, and the parts that hold their rows. ARGV: id, holder, how many parts its holder knows of,
-- done lines (a bit each), completed, failed, versions, then the names of new parts.
-- Returns the batch's status, or lost: it has another holder, or other parts (the server forgot some when it died).
local id, batch, parts, before = ARGV[1], P .. 'batch:' .. ARGV[1], P .. 'parts:' .. ARGV[1], tonumber(ARGV[3])
local holder, status = unpack(redis.call('HMGET', batch, 'holder', 'status'))
if holder ~= ARGV[2] or (status ~= 'in_progress' and status ~= 'cancelling') then return 'lost' end
local there, new = redis.call('LLEN', parts), #ARGV - 7
if there == before + new and redis.call('LINDEX', parts, -1) == ARGV[#ARGV] then return status end  -- it was sent twice
if there ~= before then return 'lost' end
for i = 8, #ARGV do redis.call('RPUSH', parts, ARGV[i]) end
local ttl = redis.call('PTTL', batch)
if ttl > 0 then redis.call('PEXPIRE', parts, ttl) end
redis.call('HSET', batch, 'done', ARGV[4], 'completed', ARGV[5], 'failed', ARGV[6], 'versions', ARGV[7], 'takes', 0)
return status
