"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "settings.config": "CHAPTER DEFAULT_LORA RunConfig",
        "settings.files": "load_config load_settings",
        "settings.setting": "About settings_of",
        "settings.several_runs": "ComparisonConfig MAX_RUNS SweepConfig",
        "tools.processes": "check_agreement main_first on_main require_one_process start_accelerator",
        "tools.stopping": "StopSignals",
        "tools.threads": "run_in_threads",
        "record.interval": (
            "bits_interval change_interval effective_trials loss_interval paired_interval ratio_intervals Score "
            "t_percentile wilson_interval"
        ),
        "record.pairs": "ScoredAnswers summarise_pairs",
        "record.progress": "RunProgress TimeLeft",
        "record.result": "Answers change_of_share",
        "record.run_record": (
            "DataSummary finished FORMAT LossPoint Parameters read_record RecordedBase RecordedConfig "
            "RunRecord Sample TrainingFigures"
        ),
        "model.sharding": "check_optimizer is_sharded shard split_optimizer_state whole_optimizer_state whole_state",
        "model.trainable": "make_trainable shard_model",
        "measure.cost": "base_bytes loading_bytes measure_blocks Measured Need",
        "measure.dtype_speed": "faster_dtype leaves_dtype_open seconds_of_dtypes",
        "measure.facts": "fact_notes Facts load_dtype measured_facts",
        "measure.memory_plan": "MemoryPlan plan_memory",
        "measure.sample": "sample_model",
        "measure.shapes": "find_shapes",
        "data.packing": "pack_data PackedDataset",
        "data.split": "DatasetSplit",
        "data.windows": "split_windows Window WINDOW_CHARACTERS",
        "score.evaluate": "evaluate",
        "score.questions": "answer_questions Question read_questions",
        "score.targets": "dtype_of evaluate_targets evaluation_targets loaded_targets TargetLoader",
        "choose.choices": "Choices choices_for describe_choices EvaluationPlan plan_evaluations",
        "choose.learning_rate": "automatic_learning_rate weight_gain",
        "step.checkpoint": "load_training_state newest_checkpoint save_training_state",
        "step.gradients": "derived_seed Gradients",
        "step.loop": "Callback TrainingLoop",
        "step.lora_plus": "loraplus",
        "step.setup": "build_loop linear_share",
        "step.text_loss": "StepLoss TextLoss",
        "run.compare": "compare comparison_rows needed_rank Point sweep",
        "run.evaluation_callback": "EvaluationCallback",
        "run.load": "read_data",
        "run.merge": "Merge merge_into_folder MergeReport",
        "run.plan": "fitted plan_run",
        "run.preview": "Preview preview",
        "run.quickstart": "PROMPTS",
        "run.resume": "changed_settings",
        "run.scores": "RunScores",
        "run.several": "check_same_inputs run_all",
        "run.stages": "train",
        "run.start": "new_record",
    },
)
