-- Writes only, over LOAD_KEYS keys from load-LOAD_FIRST on, each with a new value: a cluster node skips writes that
-- change nothing.
local first = tonumber(os.getenv("LOAD_FIRST") or 0)
local keys = tonumber(os.getenv("LOAD_KEYS"))
local run = os.time()
local count = 0

function init()
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   count = count + 1
   local body = string.format(
      '{"value":{"host":"prod-server.com","port":5432,"run":%d,"count":%d},"category":"database"}', run, count)
   return wrk.format("PUT", "/configs/load-" .. (first + count % keys), nil, body)
end
