-- Cancel a batch: what is not answered yet will not be. ARGV: id. Returns the status that it has afterwards, '' if there is none.
local batch = P .. 'batch:' .. ARGV[1]
local status = redis.call('HGET', batch, 'status')
if not status then return '' end
if status ~= 'validating' and status ~= 'in_progress' then return status end
redis.call('HSET', batch, 'status', 'cancelling', 'cancelling_at', string.format('%d', math.floor(now_ms() / 1000)),
           'ending', 'cancelled')
return 'cancelling'
