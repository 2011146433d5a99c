"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "loop_setup": "build_loop linear_share",
        "checkpoint": "load_training_state newest_checkpoint save_training_state",
        "choices": "Choices EvaluationPlan choose describe_choices plan_evaluations",
        "config": "CHAPTER DEFAULT_LORA RunConfig",
        "config_files": "load_config load_settings",
        "evaluation.evaluate": "WINDOW_CHARACTERS Window evaluate split_windows",
        "evaluation.interval": (
            "Score bits_interval change_interval effective_trials loss_interval paired_interval ratio_intervals "
            "t_percentile wilson_interval"
        ),
        "evaluation.pairs": "ScoredAnswers summarise_pairs",
        "evaluation.questions": "Question answer_questions read_questions",
        "evaluation.result": "Answers change_of_share",
        "evaluation_callback": "EvaluationCallback",
        "load_targets": "TargetLoader dtype_of evaluate_targets evaluation_targets loaded_targets",
        "facts": "Facts MemoryPlan fact_notes find_shapes load_dtype measured_facts",
        "gradients": "Gradients derived_seed",
        "learning_rate": "automatic_learning_rate weight_gain",
        "loop": "Callback TrainingLoop",
        "lora_plus": "loraplus",
        "muon": "muon_and_adamw orthogonalized plain_orthogonalized split_parameters",
        "model": "make_trainable shard_model",
        "packing": "PackedDataset pack_data",
        "cost": "Measured Need base_bytes loading_bytes measure",
        "dtype_speed": "faster_dtype leaves_dtype_open seconds_of_dtypes",
        "plan": "fitted plan_memory plan_run",
        "model_sample": "sample_model",
        "processes": "check_agreement main_first on_main require_one_process start_accelerator",
        "progress": "RunProgress TimeLeft",
        "record": (
            "DataSummary FORMAT LossPoint Parameters RecordedBase RecordedConfig RunRecord Sample "
            "TrainingFigures finished new_record read_record"
        ),
        "resume": "changed_settings",
        "run": "train",
        "sharding": "check_optimizer is_sharded shard split_optimizer_state whole_optimizer_state whole_state",
        "stopping": "StopSignals",
        "split_data": "DatasetSplit read_data",
        "text_loss": "StepLoss TextLoss",
        "threads": "run_in_threads",
        "workflows.compare": "Point check_same_inputs compare comparison_rows needed_rank run_all sweep",
        "workflows.merge": "Merge MergeReport merge_into_folder",
        "workflows.pretrain": "START build_model pretrain",
        "workflows.preview": "Preview preview",
        "workflows.quickstart": "PROMPTS",
        "workflows.workflow_settings": ("ComparisonConfig MAX_RUNS PretrainConfig SweepConfig"),
    },
)
