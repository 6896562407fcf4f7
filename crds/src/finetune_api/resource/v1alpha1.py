"""The spec of a FinetuneJob, finetune.dev/v1alpha1: what a person writes. What the operator writes is in status.py.

The CRD, the admission policy and the reference pages are generated from these models.
"""

from . import native, sections
from .keys import Section, informational, key


class Spec(Section):
    """What to train, on what, and how."""

    algorithm: sections.Algorithm | None = key("What kind of training this is.")
    job: sections.Job | None = key("The base model and the rows that it is trained on.")
    compute: sections.Compute | None = key("The accelerators: which kind, how many, on how many nodes.")
    data: sections.Data | None = key("How the rows are read: format, validation, order.")
    training: sections.Training | None = key("Method, validation, checkpoints and logging.")
    hyperparameters: sections.Hyperparameters | None = key("Numbers of the optimization.")
    lora: sections.AdapterSizes | None = key("Low-rank adapters, as training.lora.")
    policy: sections.Policy | None = key("How other systems name and sample the model.")
    tags: sections.Free | None = informational("Text for people.", "they change nothing")
    metadata: sections.Free | None = informational("Text for people and programs.", "they change nothing")
    model: sections.ModelConfig | None = key("What the base model can do.", alias="model_config")

    suspend: bool | None = key(
        "true: save a checkpoint, stop, and release the GPUs; false: resume from that checkpoint."
    )
    cancel: bool | None = key("true: save a checkpoint and end the job permanently.")
    output: native.Output | None = key("Where the result goes.")
    pods: native.Pods | None = key("Settings of the training pods.")
    network: native.Network | None = key("How ranks reach each other.")
    storage: native.Storage | None = key("Volumes besides data and output: a shared cache of models.")
    queue: native.Queue | None = key("The queue of Kueue that admits the job.")
    lifecycle: native.Lifecycle | None = key("Restarts, time limits, and what is removed afterwards.")
    credentials: native.Credentials | None = key("Secrets of the job's namespace, mounted into its pods as files.")
