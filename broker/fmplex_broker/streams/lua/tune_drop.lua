-- Drop a tuning job that has not come to be: nobody has been told of it. ARGV: id, owner.
local key = tune_key(ARGV[1])
if redis.call('HGET', key, 'status') ~= 'validating_files' then return 0 end
end_tune(ARGV[1], ARGV[2], 'failed')
redis.call('SREM', OVER, ARGV[1])
return redis.call('DEL', key, key .. ':events')
