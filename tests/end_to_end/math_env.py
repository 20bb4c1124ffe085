"""What users of other tools have: a rollout function that generates in a loop, its reward, and its transform of rows."""

import re


def math_solver_rollout(model, processing_class, prompts, generation_config=None):
    results = []
    for prompt in prompts:
        messages = [
            {"role": "system", "content": "Solve problems step by step. End with FINAL ANSWER: and the number."},
            {"role": "user", "content": prompt},
        ]
        formatted_prompt = processing_class.apply_chat_template(messages, processing_class=False, add_generation_prompt=True)
        full_response = ""
        for _ in range(5):
            current_input = formatted_prompt + full_response
            inputs = processing_class(current_input, return_tensors="pt").to(model.device)
            outputs = model.generate(**inputs, max_new_tokens=100, generation_config=generation_config)
            new_text = processing_class.decode(outputs[0][inputs.input_ids.shape[1] :], skip_special_tokens=True)
            full_response += new_text
            if "FINAL ANSWER:" in full_response:
                break
        results.append(full_response)
    return results


def math_reward(prompts, completions, answers, **kwargs):
    rewards = []
    for completion, correct_answer in zip(completions, answers, strict=True):
        match = re.search(r"FINAL ANSWER:\s*(.*)", completion)
        if match is None:
            rewards.append(-1.0 / (1 + sum(one.isdecimal() for one in completion)))
        else:
            rewards.append(1.0 if match.group(1).strip() == correct_answer else 0.0)
    return rewards


def math_transform(cfg, *args, **kwargs):
    def transform_fn(example, processing_class=None):
        return {"prompt": example["question"], "answer": example["solution"].split("####")[-1].strip()}

    return transform_fn, {"remove_columns": ["question", "solution"]}
