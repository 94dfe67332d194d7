-- Arguments: a file to send with POST (or nothing), then hosts, which requests take in turn.
local requests, at = {}, 0

function init(args)
  if args[1] ~= "" then
    local file = assert(io.open(args[1], "rb"))
    wrk.method, wrk.body = "POST", file:read("*a")
    file:close()
    wrk.headers["Content-Type"] = "application/json"
  end
  wrk.headers["User-Agent"] = "wrk"
  for number = 2, #args do
    wrk.headers["Host"] = args[number]
    requests[#requests + 1] = wrk.format()
  end
  if #requests == 0 then requests[1] = wrk.format() end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors, seconds = summary.errors, summary.duration / 1e6
  local count = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    'RESULT {"per_second":%f,"bytes_per_second":%f,"p50_us":%f,"p90_us":%f,"p99_us":%f,"p999_us":%f,"errors":%d}\n',
    summary.requests / seconds, summary.bytes / seconds, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency:percentile(99.9), count))
end
