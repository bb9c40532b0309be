-- Pause, resume or cancel a tuning job. ARGV: id, pause | resume | cancel. Returns {ok | no, its status before}; '' if there is none.
local id, wish, key = ARGV[1], ARGV[2], tune_key(ARGV[1])
local status, owner, worker = unpack(redis.call('HMGET', key, 'status', 'owner', 'worker'))
if not status then return {'no', ''} end
if wish == 'cancel' then
  if ENDS[status] then return {status == 'cancelled' and 'ok' or 'no', status} end
  say(id, 'info', 'The job was cancelled')
  end_tune(id, owner, 'cancelled')
elseif wish == 'pause' then
  if status ~= 'queued' and status ~= 'running' then return {'no', status} end
  await_no_worker(id, owner)
  redis.call('HSET', key, 'status', 'paused')
  say(id, 'info', 'The job was paused')
else
  if status ~= 'paused' then return {'no', status} end
  say(id, 'info', 'The job was resumed')
  if worker then redis.call('HSET', key, 'status', 'running')  -- it has not been told yet, or has not given it back
  else
    redis.call('HSET', key, 'status', 'queued', 'queued_at', seconds())
    await_worker(id, owner)
    say_why_it_waits(id)
  end
end
return {'ok', status}
