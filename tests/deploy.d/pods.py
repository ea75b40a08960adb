"""What must hold of every rendering, whichever of the two made it."""

import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
from rendering import general_keys
from settings import default, general, known_keys, known_variables, seconds
from tools import ROOT, Wrong, require, version

# The oldest version that the chart allows, and the newest that there are schemas of.
KUBERNETES = ["1.30", "1.37"]
# What the Secrets, ConfigMaps and claims that an operator brings along are called in the examples here.
GIVEN = re.compile(r"given-|refshim-index$|index-password$|registry-(login|data|htpasswd|tls)$")
# The ports that a file of values opens beside the usual ones.
FURTHER = {"chart with gateway-everything.yaml": [8443, 9443]}
SCHEMAS = Path(__file__).parent / "schemas"
# Those of the Pod Security Standard "restricted".
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def objects_fit_their_schemas(rendering):
    for one in rendering.objects:
        own = SCHEMAS / f"{one['kind'].lower()}.json"
        try:
            if own.exists():
                jsonschema.validate(one, json.loads(own.read_text()))
                continue
            for release in KUBERNETES:
                kubernetes_validate.validate(one, release, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            raise Wrong(f"{one['kind']} at {list(error.path)}: {error.message}") from None


def names_are_in_order(rendering):
    names = [(one["kind"], one["metadata"]["name"]) for one in rendering.objects]
    require(len(set(names)) == len(names), f"a name is taken twice: {names}")
    for kind, name in names:
        require(re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= 63, f"{kind} is called {name}")
    require(len({one["metadata"].get("namespace") for one in rendering.objects}) == 1, "several namespaces")
    own = {one["metadata"]["labels"]["app.kubernetes.io/name"] for one in rendering.objects}
    require(len(own) == 1, f"several applications: {own}")


def selectors_select_the_pods(rendering):
    spec = rendering.workload["spec"]
    selector = spec["selector"]["matchLabels"]
    require(selector and selector.items() <= rendering.pod_labels.items(), "the workload does not select its Pods")
    found = {"Service": one["spec"]["selector"] for one in rendering.all("Service")}
    found |= {"NetworkPolicy": one["spec"]["podSelector"].get("matchLabels") for one in rendering.all("NetworkPolicy")}
    found |= {"budget": one["spec"]["selector"]["matchLabels"] for one in rendering.all("PodDisruptionBudget")}
    spreads = rendering.pod.get("topologySpreadConstraints", [])
    found |= {f"spread by {one['topologyKey']}": one["labelSelector"]["matchLabels"] for one in spreads}
    for what, selected in found.items():
        require(selected == selector, f"{what} selects {selected}, not {selector}")
    if rendering.workload["kind"] == "StatefulSet":
        require(spec["serviceName"] in rendering.names("Service"), f"no Service {spec['serviceName']}")
    account = rendering.pod["serviceAccountName"]
    require(account in rendering.names("ServiceAccount") or GIVEN.match(account), f"no ServiceAccount {account}")


def services_reach_refshim_alone(rendering):
    named = {port["name"]: port["containerPort"] for port in rendering.containers["refshim"]["ports"]}
    for service in rendering.all("Service"):
        reached = [named.get(port["targetPort"]) for port in service["spec"]["ports"]]
        is_admin = service["metadata"]["name"].endswith("-admin")
        wanted = [5001] if is_admin else [5000, *FURTHER.get(rendering.name, [])]
        require(reached == wanted, f"{service['metadata']['name']} leads to {reached}")
        require(not is_admin or service["spec"]["clusterIP"] == "None", "the admin Service is not headless")
    others = [name for name, one in rendering.containers.items() if name != "refshim" and "ports" in one]
    require("registry" not in others, "the registry has ports")
    scheme = "https" if "tls.certificate" in rendering.settings else "http"
    require(rendering.service()["spec"]["ports"][0]["name"] == scheme, f"the port is not called {scheme}")


def routes_lead_to_the_service(rendering):
    service = rendering.service()
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]
    for ingress in rendering.all("Ingress"):
        require(ingress["spec"]["rules"], "an Ingress without rules")
        for rule in ingress["spec"]["rules"]:
            (path,) = rule["http"]["paths"]
            backend = path["backend"]["service"]
            require((path["path"], path["pathType"]) == ("/", "Prefix"), "not all paths")
            leads_to = (backend["name"], backend["port"]["name"])
            require(leads_to == (name, port["name"]), f"the Ingress leads to {leads_to}")
        for tls in ingress["spec"].get("tls", []):
            require(tls["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]], "not all hosts with TLS")
    for route in rendering.all("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            require(rule["backendRefs"] == [{"name": name, "port": port["port"]}], f"leads to {rule['backendRefs']}")
    for monitor in rendering.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [one for one in rendering.all("Service") if wanted <= one["metadata"]["labels"].items()]
        require(found == [rendering.service(is_admin=True)], f"the ServiceMonitor finds {len(found)} Services")
        (endpoint,) = monitor["spec"]["endpoints"]
        require(endpoint["port"] == found[0]["spec"]["ports"][0]["name"], f"no port {endpoint['port']}")


def probes_ask_an_open_port(rendering):
    refshim = rendering.containers["refshim"]
    named = {port["name"]: port["containerPort"] for port in refshim["ports"]}
    listens = rendering.settings["admin_listen"]
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        get = refshim[probe]["httpGet"]
        require(get["path"] == path, f"{probe} asks {get['path']}")
        require(listens == f"0.0.0.0:{named.get(get['port'])}", f"{probe} asks {get['port']}, admin is {listens}")
    require(rendering.settings["listen"] == "0.0.0.0:5000", f"clients are to come to {rendering.settings['listen']}")
    if registry := rendering.containers.get("registry"):
        (probe,) = (words for word, words in registry["livenessProbe"].items() if word == "exec")
        require(f"{rendering.settings['upstream']}/" in probe["command"], f"the registry is probed by {probe}")


def admin_is_kept_from_clients(rendering):
    if not (policies := rendering.all("NetworkPolicy")):
        require("without-policy" in rendering.name, "there is no NetworkPolicy")
        return
    (policy,) = policies
    require("Ingress" in policy["spec"]["policyTypes"], "it is not about who comes in")
    open_to_all = [port for rule in policy["spec"]["ingress"] if not rule.get("from") for port in rule["ports"]]
    require(all(port == {"port": 5000} for port in open_to_all), f"open to everybody: {open_to_all}")
    ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    wanted = {5000, *FURTHER.get(rendering.name, [])}
    require(ports - {5001} == wanted, f"the ports are {ports}")


def mounts_have_volumes(rendering):
    volumes = {one["name"] for one in rendering.pod.get("volumes", [])}
    claims = {one["metadata"]["name"] for one in rendering.claims}
    require(not volumes & claims, f"both volume and claim: {volumes & claims}")
    mounted = set()
    for name, container in rendering.containers.items():
        mounts = container.get("volumeMounts", [])
        paths = [mount["mountPath"] for mount in mounts]
        require(len(set(paths)) == len(paths), f"{name}: two mounts at one place: {paths}")
        mounted |= {mount["name"] for mount in mounts}
    require(mounted == volumes | claims, f"mounted {mounted}, there are {volumes | claims}")


def what_is_referred_to_exists(rendering):
    found = []
    for volume in rendering.pod.get("volumes", []):
        found += [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
        found += [("Secret", volume["secret"]["secretName"])] if "secret" in volume else []
        claim = volume.get("persistentVolumeClaim")
        found += [("PersistentVolumeClaim", claim["claimName"])] if claim else []
    for container in rendering.containers.values():
        sources = container.get("envFrom", []) + [one.get("valueFrom", {}) for one in container.get("env", [])]
        for source in sources:
            for word, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"), ("secretKeyRef", "Secret")):
                found += [(kind, source[word]["name"])] if word in source else []
    found += [("Secret", one["name"]) for one in rendering.pod.get("imagePullSecrets", [])]
    found += [("Secret", tls["secretName"]) for one in rendering.all("Ingress") for tls in one["spec"].get("tls", [])]
    for kind, name in found:
        require(name in rendering.names(kind) or GIVEN.match(name), f"there is no {kind} {name}")


def files_of_settings_are_mounted(rendering):
    mounts = {mount["mountPath"]: mount for mount in rendering.containers["refshim"]["volumeMounts"]}
    data = mounts.get(rendering.settings["data_dir"])
    require(data and not data.get("readOnly"), f"nothing to write at {rendering.settings['data_dir']}")
    image = (ROOT / "deploy" / "Dockerfile").read_text()
    require(f"\nVOLUME {rendering.settings['data_dir']}\n" in image, "the image keeps its data elsewhere")
    named = [rendering.variables().get("REFSHIM_CONFIG", [])]
    named += [value for key, value in rendering.settings.items() if key != "data_dir"]
    paths = [path for value in named for path in ([value] if isinstance(value, str) else as_list(value))]
    paths = [path for path in paths if path.startswith("/")]
    for path in paths:
        mount = mounts.get(str(Path(path).parent))
        require(mount and mount["readOnly"] and "subPath" not in mount, f"{path} is not mounted")
    ours = {place for place in mounts if place.startswith("/etc/refshim/")}
    needless = ours - {str(Path(path).parent) for path in paths}
    require(not needless, f"mounted, and no setting names it: {needless}")


def as_list(value):
    return value if isinstance(value, list) else []


def settings_exist(rendering):
    known = general_keys(known_keys())
    unknown = {key for key in rendering.settings if general(key) not in known}
    require(not unknown, f"refshim has no setting {unknown}")
    variables = {name for name in rendering.variables() if name.startswith("REFSHIM_")}
    require(variables <= known_variables(), f"refshim has no setting {variables - known_variables()}")


def registry_is_reached_through_refshim_alone(rendering):
    containers = rendering.containers
    if "registry" not in containers:
        require(rendering.settings["upstream"] == "https://registry.example", "not that upstream")
        return
    registry = rendering.variables("registry")
    require(rendering.settings["upstream"] == f"http://{registry['REGISTRY_HTTP_ADDR']}", "refshim asks elsewhere")
    require(registry["REGISTRY_HTTP_ADDR"].startswith("127.0.0.1:"), "the registry is not on loopback alone")
    # So it stops after refshim.
    require(containers["registry"]["restartPolicy"] == "Always", "it is no sidecar container")
    require(containers["registry"] in rendering.pod["initContainers"], "it is no sidecar container")


def pods_are_restricted(rendering):
    """The Pod Security Standard "restricted", and what goes beyond it."""
    pod = rendering.pod
    context = pod["securityContext"]
    require(context["runAsNonRoot"] is True and context["runAsUser"] > 0, "may run as root")
    require(context["runAsUser"] == context["fsGroup"], "the volumes belong to somebody else")
    require(context["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp profile")
    require(pod["automountServiceAccountToken"] is False, "it has a token")
    require(pod["enableServiceLinks"] is False, "variables named after Services get in")
    require(not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), "it shares the host's namespaces")
    for account in rendering.all("ServiceAccount"):
        require(account["automountServiceAccountToken"] is False, "the account has a token")
    for volume in pod.get("volumes", []):
        require(set(volume) - {"name"} <= VOLUMES, f"a volume of kind {set(volume) - {'name'}}")
    for name, container in rendering.containers.items():
        own = container["securityContext"]
        require(own["allowPrivilegeEscalation"] is False, f"{name} may escalate")
        require(own["readOnlyRootFilesystem"] is True, f"{name} may write its root")
        require(own["capabilities"] == {"drop": ["ALL"]}, f"{name} keeps capabilities")
        require("memory" in container["resources"]["limits"], f"{name} has no limit of memory")
        require({"cpu", "memory"} <= set(container["resources"]["requests"]), f"{name} requests nothing")


def data_has_one_writer(rendering):
    """A data directory has one process; an index in a database has any number of them."""
    spec, is_local = rendering.workload["spec"], "index.url" not in rendering.settings
    data = [one for one in rendering.pod.get("volumes", []) if one["name"] == "data"]
    if is_local:
        require(rendering.workload["kind"] == "StatefulSet", "the old and the new Pod would overlap")
        require(rendering.replicas == 1, f"{rendering.replicas} replicas of one directory")
        (claim,) = [one for one in rendering.claims if one["metadata"]["name"] == "data"] or data
        modes = claim.get("spec", {}).get("accessModes", ["ReadWriteOnce"])
        require("emptyDir" not in claim and modes[0] in ("ReadWriteOnce", "ReadWriteOncePod"), f"{claim}")
        kept = spec["persistentVolumeClaimRetentionPolicy"]
        require(set(kept.values()) == {"Retain"}, "the volumes go with the StatefulSet")
    else:
        require(rendering.workload["kind"] == "Deployment", "replicas that have no need to be told apart")
        require(data == [{"name": "data", "emptyDir": {}}], f"{data}")
        require(spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, "an update takes replicas away")
        require("@" in rendering.settings["index.url"], "no user of the database")
        require(not re.search(r"://[^@/]*:[^@/]*@", rendering.settings["index.url"]), "a password in the URL")


def replicas_are_spread(rendering):
    several = rendering.replicas > 1
    keys = {one["topologyKey"] for one in rendering.pod.get("topologySpreadConstraints", [])}
    require(several == ("kubernetes.io/hostname" in keys), f"{rendering.replicas} replicas, spread by {keys}")
    budgets = rendering.all("PodDisruptionBudget")
    require(several == bool(budgets), f"{rendering.replicas} replicas, {len(budgets)} budgets")
    if budgets:
        require(budgets[0]["spec"]["maxUnavailable"] not in (0, "0%"), "no node could be drained")


def time_to_stop_is_enough(rendering):
    pause = rendering.containers["refshim"].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    shutdown = seconds(rendering.settings.get("timeouts.shutdown", default("timeouts.shutdown")))
    granted = rendering.pod["terminationGracePeriodSeconds"]
    require(granted > shutdown + pause, f"granted {granted} s, needed {shutdown} s after {pause} s")
    # Where others take over, they are given the time to be found.
    require((pause > 0) == (rendering.replicas > 1), f"waits {pause} s of {rendering.replicas} replicas")


def images_are_pinned(rendering):
    images = {name: one["image"] for name, one in rendering.containers.items()}
    own = images["refshim"]
    require(own.endswith(f"refshim:{version()}") or "@sha256:" in own, f"runs {own}")
    for name, image in images.items():
        is_pinned = re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image) and not image.endswith(":latest")
        require(is_pinned, f"{name} runs {image}")


CHECKS = [
    objects_fit_their_schemas,
    names_are_in_order,
    selectors_select_the_pods,
    services_reach_refshim_alone,
    routes_lead_to_the_service,
    probes_ask_an_open_port,
    admin_is_kept_from_clients,
    mounts_have_volumes,
    what_is_referred_to_exists,
    files_of_settings_are_mounted,
    settings_exist,
    registry_is_reached_through_refshim_alone,
    pods_are_restricted,
    data_has_one_writer,
    replicas_are_spread,
    time_to_stop_is_enough,
    images_are_pinned,
]


def of_every(renderings, check):
    """The check of all these renderings, under the name of the check."""

    def of_all():
        for rendering in renderings():
            try:
                check(rendering)
            except Exception as error:
                raise Wrong(f"{rendering.name}: {type(error).__name__}: {error}") from None

    of_all.__name__ = f"kubernetes_{check.__name__}"
    return of_all
