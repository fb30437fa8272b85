"""Checks Kubernetes objects from any source against schemas, the image, each other and the server."""
import pathlib
import subprocess
import tempfile

import kubernetes_validate

from checking import ADMIN_PORT, API_KEY, CLUSTER_PORT, CLUSTER_SECRET, check_nodes, expect
from confinement import PROFILE

# 1.27 is the first version that enables the field unhealthyPodEvictionPolicy by default.
KUBERNETES_VERSIONS = ("1.27", "1.37")
# Custom resources of other projects, for which no schema is available.
WITHOUT_SCHEMA = {"ServiceMonitor"}
# Variables that must come from a Secret and must not be in a file.
SECRETS = {"OSC_API_KEY": API_KEY, "OSC_CLUSTER_SECRET": CLUSTER_SECRET}
RUNTIME_DEFAULT = {"type": "RuntimeDefault"}
OWN_PROFILE = {"type": "Localhost", "localhostProfile": PROFILE.name}


def check_schemas(name, objects):
    known = [found for found in objects if found["kind"] not in WITHOUT_SCHEMA]
    for found in known:
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                at = ".".join(map(str, error.path))
                expect(False, f"{name}, {found['kind']}, Kubernetes {version}: {at}: {error.message}")
    versions = " and ".join(KUBERNETES_VERSIONS)
    print(f"{name}: {len(known)} of {len(objects)} objects match the schemas of Kubernetes {versions}")


def check_objects(name, objects, image, confine, seccomp=RUNTIME_DEFAULT):
    """Checks the objects of an installation; returns the environment of each pod."""
    def of_kind(kind):
        return [found for found in objects if found["kind"] == kind]

    stateful = of_kind("StatefulSet")[0]
    spec, pod = stateful["spec"], stateful["spec"]["template"]["spec"]
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    services = {found["metadata"]["name"]: found["spec"] for found in of_kind("Service")}

    expect(container["image"] == pod["initContainers"][0]["image"], f"{name}: the containers have different images")
    check_salt(name, pod["initContainers"][0]["command"], image, confine)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    is_cluster = spec["replicas"] > 1
    wanted = {"http": image.port, "admin": ADMIN_PORT} | ({"cluster": CLUSTER_PORT} if is_cluster else {})
    expect(ports == wanted, f"{name}: the container's ports are {ports}, not {wanted}")
    for service, found in services.items():
        expect(found["selector"].items() <= labels.items(), f"{name}: {service} does not select the pods")
        # Only the headless Service of the nodes exposes the cluster port.
        target = "cluster" if is_cluster and service == spec["serviceName"] else "http"
        # It also exposes the port for monitoring, which scrapes each node.
        allowed = [[target], [target, "admin"]] if service == spec["serviceName"] else [[target]]
        targets = [port["targetPort"] for port in found["ports"]]
        expect(targets in allowed, f"{name}: {service} targets {targets}, not {target}")
    for monitor in of_kind("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [service for service in of_kind("Service") if wanted <= service["metadata"]["labels"].items()]
        names = [port["name"] for service in found for port in service["spec"]["ports"]]
        asked = [(each["port"], each.get("scheme", "http")) for each in monitor["spec"]["endpoints"]]
        expect(len(found) == 1 and asked == [("admin", "http")] and "admin" in names,
               f"{name}: the ServiceMonitor scrapes {asked} of {len(found)} Services with {names}")
    budgets = of_kind("PodDisruptionBudget")
    expect(len(budgets) == (spec["replicas"] > 1), f"{name}: {spec['replicas']} nodes have {len(budgets)} budgets")
    for selector in (spec["selector"], *(budget["spec"]["selector"] for budget in budgets)):
        expect(selector["matchLabels"].items() <= labels.items(), f"{name}: a selector does not select the pods")

    headless = services[spec["serviceName"]]
    expect(headless.get("clusterIP") == "None", f"{name}: the Service of the nodes is not headless")
    expect(headless.get("publishNotReadyAddresses"), f"{name}: nodes that are not ready cannot resolve each other")
    expect(spec.get("podManagementPolicy") == "Parallel", f"{name}: nodes do not start in parallel")

    expect(pod.get("enableServiceLinks") is False, f"{name}: the name of a Service can set OSC_* variables")
    expect(pod["securityContext"]["runAsUser"] == image.user, f"{name}: the user is not the image's")
    expect(pod["securityContext"]["seccompProfile"] == seccomp, f"{name}: the seccomp profile is not {seccomp}")
    expect(pod["securityContext"]["runAsNonRoot"], f"{name}: runAsNonRoot is not set")
    for each in (container, *pod["initContainers"]):
        context = each["securityContext"]
        is_tight = context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        expect(is_tight and context["capabilities"] == {"drop": ["ALL"]}, f"{name}: {each['name']} has excess privileges")
        expect({"requests", "limits"} <= set(each["resources"]), f"{name}: {each['name']} lacks requests or limits")
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    expect(mounts == [image.volume], f"{name}: the volume is not mounted on the data directory of the image")
    policies = of_kind("NetworkPolicy")
    expect(policies or not is_cluster, f"{name}: no NetworkPolicy protects the cluster port")
    # Policies are additive, so each of them must be correct.
    for policy in policies:
        check_policy(name, policy["spec"], labels, is_cluster)

    # check_running requests these paths.
    paths = {"startupProbe": "/cluster/health", "livenessProbe": "/cluster/health", "readinessProbe": "/ready"}
    for probe, path in paths.items():
        asked = container[probe]["httpGet"]
        expect(asked["path"] == path, f"{name}: {probe} requests {asked['path']}")
        is_plain = asked["port"] == "admin" and asked.get("scheme", "HTTP") == "HTTP"
        expect(is_plain, f"{name}: {probe} does not use the admin port without TLS")

    pods = [f"{stateful['metadata']['name']}-{number}" for number in range(spec["replicas"])]
    environments = [image.environment | pod_environment(name, container["env"], pod) for pod in pods]
    for environment in environments:
        listen = environment.get("OSC_ADMIN_LISTEN")
        expect(listen == f"0.0.0.0:{ADMIN_PORT}", f"{name}: OSC_ADMIN_LISTEN is {listen}")
    if is_cluster:
        check_nodes(name, environments, [f"{pod}.{spec['serviceName']}:{CLUSTER_PORT}" for pod in pods])
    return environments


def check_policy(name, policy, labels, is_cluster):
    """Checks that only nodes reach the cluster ports, and that clients reach only the other ports."""
    nodes = policy["podSelector"]
    expect(nodes["matchLabels"].items() <= labels.items(), f"{name}: the policy does not select the pods")
    between_nodes = [{"port": "cluster"}]
    for direction, side in (("ingress", "from"), ("egress", "to")):
        if direction.capitalize() not in policy["policyTypes"]:
            expect(direction == "egress", f"{name}: the policy does not restrict ingress")
            continue
        rules = list(policy[direction])
        if is_cluster:
            rule = {side: [{"podSelector": nodes}], "ports": between_nodes}
            expect(rules.pop(0) == rule, f"{name}: {direction} between nodes is not {rule}")
        if direction == "ingress":
            for rule in rules:
                # A rule without sources, or with an empty list of sources, allows all sources.
                ports = [port["port"] for port in rule["ports"]]
                expect(ports in (["http"], ["http", "admin"]), f"{name}: clients reach {ports}")
                expect(rule.get("from") != [], f"{name}: an empty list of clients allows all sources")
        else:
            found = [port["port"] for rule in rules for port in rule["ports"]]
            expect(found == [53, 53], f"{name}: egress is allowed to ports {found}, not only to 53 over UDP and TCP")


def check_salt(name, command, image, confine):
    """Checks that the init container copies the salt once, and only to the path where the server reads it."""
    def status():
        return subprocess.run(command, preexec_fn=confine, stderr=subprocess.DEVNULL).returncode

    with tempfile.TemporaryDirectory() as directory:
        given, volume = pathlib.Path(directory, "salt"), pathlib.Path(directory, "data")
        target = volume / pathlib.Path(image.environment["OSC_SALT_FILE_PATH"]).relative_to(image.volume)
        command = [part.replace("/salt/", f"{given}/").replace(image.volume, str(volume)) for part in command]
        given.mkdir()
        volume.mkdir()
        expect(status() != 0, f"{name}: a missing salt is not an error")
        for salt in (b"first", b"second"):
            (given / "encryption.salt").write_bytes(salt)
            expect(status() == 0, f"{name}: the salt is not copied")
            expect(list(volume.iterdir()) == [target], f"{name}: the salt is not where the server reads it")
            expect(target.read_bytes() == b"first", f"{name}: an existing salt is replaced")


def pod_environment(name, variables, pod):
    environment = {}
    for variable in variables:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            environment[variable["name"]] = SECRETS.get(variable["name"], "another-secret")
        elif source:
            expect(source == {"fieldRef": {"fieldPath": "metadata.name"}}, f"{name}: unsupported {source}")
            environment[variable["name"]] = pod
        else:
            expect(variable["name"] not in SECRETS, f"{name}: the file contains a secret")
            environment[variable["name"]] = variable["value"]
    return environment
