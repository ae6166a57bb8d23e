"""The part of KubeRay's schema that the manifests use, as JSON Schema; unknown keys are refused.

Written down from the operator's public API types, group ray.io/v1 (github.com/ray-project/kuberay, folder
ray-operator/apis/ray/v1: rayjob_types.go at 0057210e, rayservice_types.go at 00741298, raycluster_types.go at 026f1433,
the time of KubeRay 1.4), and from the core/v1 types of Kubernetes for pods. Keys that the manifests don't use are left
out, so a manifest that starts to use one has to extend this.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
QUANTITIES: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"},
}


def an_object(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def a_list(item: Schema) -> Schema:
    """A list with at least one item."""
    return {"type": "array", "items": item, "minItems": 1}


START_PARAMS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = an_object({"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}})
VARIABLE = {
    "oneOf": [
        an_object({"name": TEXT, "value": {"type": "string"}}),
        an_object({"name": TEXT, "valueFrom": an_object({"secretKeyRef": an_object({"name": TEXT, "key": TEXT})})}),
    ]
}
CONTAINER = an_object(
    {"name": TEXT, "image": TEXT, "resources": an_object({"requests": QUANTITIES, "limits": QUANTITIES})},
    {
        "ports": a_list(an_object({"containerPort": COUNT, "name": {"type": "string", "maxLength": 15}})),
        "env": a_list(VARIABLE),
        "volumeMounts": a_list(an_object({"name": TEXT, "mountPath": TEXT}, {"readOnly": {"type": "boolean"}})),
    },
)
CLAIM = an_object({"claimName": TEXT}, {"readOnly": {"type": "boolean"}})
VOLUME = an_object({"name": TEXT, "persistentVolumeClaim": CLAIM})
POD = an_object({"spec": an_object({"containers": a_list(CONTAINER)}, {"volumes": a_list(VOLUME)})})
CLUSTER = an_object(
    {
        "rayVersion": {"type": "string", "pattern": r"^2\.\d+\.\d+$"},
        "headGroupSpec": an_object({"rayStartParams": START_PARAMS, "template": POD}),
        "workerGroupSpecs": a_list(
            an_object(
                {
                    "groupName": TEXT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": START_PARAMS,
                    "template": POD,
                },
                {"replicas": COUNT},
            )
        ),
    }
)


def a_kind(kind: str, spec: Schema) -> Schema:
    """A manifest of one kind."""
    return an_object(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA, "spec": spec}
    )


RAY_JOB = a_kind(
    "RayJob",
    an_object(
        {"entrypoint": TEXT, "rayClusterSpec": CLUSTER},
        {
            "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
            "backoffLimit": COUNT,
            "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
            "shutdownAfterJobFinishes": {"type": "boolean"},
            "ttlSecondsAfterFinished": COUNT,
        },
    ),
)
RAY_SERVICE = a_kind("RayService", an_object({"serveConfigV2": TEXT, "rayClusterConfig": CLUSTER}))
SERVE_CONFIG = an_object(
    {
        "applications": a_list(
            an_object(
                {"name": TEXT, "import_path": {"type": "string", "pattern": r"^[\w.]+:\w+$"}, "route_prefix": TEXT},
                {"args": {"type": "object"}, "runtime_env": {"type": "object"}},
            )
        )
    }
)
