-- Each request has a new user key and creates an entry with it, so that the expected response is a 2xx.
local rest = os.getenv("LOAD_BODY"):sub(2)
local run = os.time()
local count = 0

function init()
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   count = count + 1
   wrk.headers["X-User-Key"] = string.format("cold-user-key-%d-%d", run, count)
   return wrk.format("POST", "/configs", nil, string.format('{"key":"cold-%d-%d",%s', run, count, rest))
end
