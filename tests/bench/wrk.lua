-- What wrk runs: the same GET, or (with arguments after the URL) GETs in turn, or PUTs of manifests that are never the
-- same.
--   wrk … URL                          GET URL
--   wrk … URL -- round COUNT PATH      GET PATH with a number from 1 to COUNT in place of each %d and %x in it
--   wrk … URL -- put|plain SEED        PUT manifests with, or without, a link; SEED keeps runs apart

local kind, seed, rounds, pattern, get
local count = 0
local gets = {}
local headers = { ["Content-Type"] = "application/vnd.oci.image.manifest.v1+json" }

local manifest = [[{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",]]
    .. [["config":{"mediaType":"application/vnd.oci.empty.v1+json","size":2,]]
    .. [["digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},]]
    .. [["layers":[],"annotations":{"org.example.number":"%s-%d"}%s}]]
local reference = [[,"reference":{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1000,]]
    .. [["digest":"sha256:%s%056x"}]]

function init(arguments)
    kind, seed = arguments[1], arguments[2]
    rounds, pattern = tonumber(arguments[2]), arguments[3]
end

local function next_get()
    count = count % rounds + 1
    gets[count] = gets[count] or wrk.format("GET", pattern:format(count, count))
    return gets[count]
end

function request()
    if kind == "round" then
        return next_get()
    elseif not kind then
        get = get or wrk.format()
        return get
    end
    count = count + 1
    -- Four referrers for each subject.
    local link = kind == "put" and reference:format(seed, math.floor(count / 4)) or ""
    local tag = ("/v2/bench/manifests/%s-%s-%d"):format(kind, seed, count)
    return wrk.format("PUT", tag, headers, manifest:format(seed, count, link))
end

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print(("RESULT %d %d %d %d %d %d"):format(summary.requests, summary.duration, summary.bytes,
        latency:percentile(50), latency:percentile(99), failed))
end
