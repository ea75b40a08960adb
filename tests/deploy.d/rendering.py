"""What helm or kustomize makes of the files: the objects, and how to find one's way in them."""

import tomllib

import yaml
from settings import general, known_keys, variable
from tools import StrictLoader, require


class Rendering:
    """The objects of one installation."""

    def __init__(self, name, text):
        self.name = name
        self.objects = [document for document in yaml.load_all(text, StrictLoader) if document]

    def all(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind):
        found = self.all(kind)
        require(len(found) == 1, f"{len(found)} of kind {kind}")
        return found[0]

    def names(self, kind):
        return {one["metadata"]["name"] for one in self.all(kind)}

    @property
    def workload(self):
        """The StatefulSet or Deployment."""
        found = self.all("StatefulSet") + self.all("Deployment")
        require(len(found) == 1, f"{len(found)} workloads")
        return found[0]

    @property
    def pod(self):
        return self.workload["spec"]["template"]["spec"]

    @property
    def pod_labels(self):
        return self.workload["spec"]["template"]["metadata"]["labels"]

    @property
    def replicas(self):
        return self.workload["spec"]["replicas"]

    @property
    def containers(self):
        """The containers of the Pod by their names, in the order of their start."""
        every = self.pod.get("initContainers", []) + self.pod["containers"]
        require(len({one["name"] for one in every}) == len(every), "two containers of one name")
        return {one["name"]: one for one in every}

    @property
    def claims(self):
        return self.workload["spec"].get("volumeClaimTemplates", [])

    def service(self, is_admin=False):
        """The Service of clients, or the one of the admin listener."""
        found = [one for one in self.all("Service") if one["metadata"]["name"].endswith("-admin") == is_admin]
        require(len(found) == 1, f"{len(found)} Services")
        return found[0]

    def variables(self, container="refshim"):
        """The variables of a container that have a value here."""
        spec = self.containers[container]
        found = {}
        for source in spec.get("envFrom", []):
            name = source.get("configMapRef", {}).get("name")
            for one in (one for one in self.all("ConfigMap") if one["metadata"]["name"] == name):
                found |= one["data"]
        listed = [one["name"] for one in spec.get("env", [])]
        require(len(set(listed)) == len(listed), f"{container}: a variable is given twice")
        return found | {one["name"]: one["value"] for one in spec.get("env", []) if "value" in one}

    @property
    def file(self):
        """The text of the configuration file, if there is one."""
        if "REFSHIM_CONFIG" not in self.variables():
            return ""
        (file,) = self.one("ConfigMap")["data"].values()
        return file

    @property
    def settings(self):
        """The settings, from the file and from variables, by their keys."""
        found = dict(flat(tomllib.loads(self.file)))
        known = {variable(key): key for key in known_keys()}
        variables = self.variables().items()
        return found | {known[name]: value for name, value in variables if name in known}


def flat(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def general_keys(settings):
    return {general(key) for key in settings}
