"""The `openai` package as client of a running server: answers, streams, images, parameters, errors."""

import threading

import openai
import pytest

from llava_jax.inference.engine import generate
from llava_jax.models.llava import Llava
from llava_jax.serve.prompts import prepare
from llava_jax.serve.schema import parse_chat
from tests.serve.conftest import NAME, data_uri, question

RED, BLUE = data_uri((200, 30, 30)), data_uri((20, 30, 220), "JPEG")


def ask(client, text="what color is it ?", images=(RED,), **options):
    options = {"max_tokens": 12, "model": NAME, **options}
    return client.chat.completions.create(messages=question(text, *images), **options)


def streamed(chunks) -> tuple[dict[int, str], dict[int, str], object]:
    """(text and finish reason of each choice, usage) of a stream."""
    texts, finishes, usage = {}, {}, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in finishes, "a chunk after the end"
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    return texts, finishes, usage


def test_models_lists_the_served_model(client):
    assert [model.id for model in client.models.list()] == [NAME]


def test_answer_and_usage_equal_those_of_generate(client, backend):
    answer = ask(client, images=())
    body = b'{"messages": [{"role": "user", "content": "what color is it ?"}], "max_tokens": 12}'
    prompt, settings = prepare(backend, parse_chat(body, NAME))
    alone = generate(Llava(backend.model.config), backend.engine.params, [prompt], settings, backend.model.tokenizer)
    assert answer.choices[0].message.content == alone[0].text.strip() != ""
    assert answer.usage.completion_tokens == len(alone[0].ids)
    assert answer.usage.prompt_tokens == len(prompt.tokens)
    assert answer.usage.total_tokens == len(prompt.tokens) + len(alone[0].ids)


def test_stream_equals_the_whole_answer(client):
    whole = ask(client, n=2, seed=5, temperature=1.0)
    stream = ask(client, n=2, seed=5, temperature=1.0, stream=True, stream_options={"include_usage": True})
    texts, finishes, usage = streamed(stream)
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]
    assert [finishes[0], finishes[1]] == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_usage_is_streamed_only_on_request(client):
    assert streamed(ask(client, stream=True))[2] is None


def test_seed_repeats_an_answer_and_choices_differ(client):
    first, second = (ask(client, n=3, seed=7, temperature=1.5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) == 3
    assert ask(client, seed=8, temperature=1.5).choices[0].message.content != texts[0]
    assert len({ask(client, temperature=1.5).choices[0].message.content for _ in range(3)}) > 1  # a new seed for each


def test_no_temperature_is_greedy(client):
    assert ask(client).choices == ask(client, temperature=0, seed=3).choices


def test_images_change_the_answer_and_their_order_counts(client):
    logprobs = [
        ask(client, images=images, logprobs=True).choices[0].logprobs.content[0].logprob
        for images in ((RED,), (BLUE,), (RED, BLUE), (BLUE, RED))
    ]
    assert len(set(logprobs)) == 4


def test_stop_string_ends_the_answer_and_is_not_shown(client):
    text = ask(client, images=()).choices[0].message.content
    stop = text[3:6]
    answer = ask(client, images=(), stop=[stop, "never seen"]).choices[0]
    assert answer.message.content == text[: text.index(stop)].strip() and answer.finish_reason == "stop"
    assert streamed(ask(client, images=(), stop=stop, stream=True))[0][0] == answer.message.content


def test_length_is_the_finish_reason_at_the_limit(client):
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(messages=question("hello"), model=NAME, **{limit: 3})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_answer_ends_at_the_end_of_the_slot(client):
    answer = ask(client, max_tokens=100_000, stop=None, temperature=1.0, seed=1)
    assert answer.usage.total_tokens <= 128


def test_logprobs_are_those_of_the_tokens_and_sorted(client):
    whole = ask(client, logprobs=True, top_logprobs=3).choices[0]
    assert len(whole.logprobs.content) == 12
    for entry in whole.logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True) and entry.logprob == values[0] < 0  # greedy
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
    streamed_entries = [
        entry
        for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [entry.logprob for entry in streamed_entries] == [entry.logprob for entry in whole.logprobs.content]


def test_second_turn_reads_only_its_new_tokens(client, site):
    messages = question("tell me of a new thing", RED)
    first = client.chat.completions.create(messages=messages, model=NAME, max_tokens=4)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *question("and then ?")]
    second = client.chat.completions.create(messages=messages, model=NAME, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_system_and_developer_messages_are_the_system_text(client):
    answers = [
        client.chat.completions.create(
            messages=[{"role": role, "content": "you are terse"}, *question("hello")], model=NAME, max_tokens=4,
            logprobs=True,
        ).choices
        for role in ("system", "developer")
    ]  # fmt: skip
    plain = client.chat.completions.create(messages=question("hello"), model=NAME, max_tokens=4, logprobs=True).choices
    assert answers[0] == answers[1] != plain


def test_answers_of_concurrent_requests_equal_those_alone(client):
    texts = ["what is it ?", "is there a circle ?", "hello", "which is further left ?", "count the crosses", "why ?"]
    alone = {text: ask(client, text).choices[0].message.content for text in texts}
    together, threads = {}, []
    for text in texts:
        threads.append(threading.Thread(target=lambda t=text: together.update({t: ask(client, t)})))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
    assert {text: answer.choices[0].message.content for text, answer in together.items()} == alone


@pytest.mark.parametrize(
    "options, error, param",
    [
        (dict(model="another"), openai.NotFoundError, "model"),
        (dict(n=5), openai.BadRequestError, "n"),
        (dict(tools=[{"type": "function", "function": {"name": "f"}}]), openai.BadRequestError, "tools"),
        (dict(images=("http://127.0.0.1:1/x.png",)), openai.BadRequestError, "messages.0.content.0"),
        (dict(images=("data:image/png;base64,AAAA",)), openai.BadRequestError, "messages"),
        (dict(text="word " * 400), openai.BadRequestError, "messages"),
        (dict(text="word " * 400, stream=True), openai.BadRequestError, "messages"),
    ],
)
def test_errors_are_the_clients_own_exceptions(client, options, error, param):
    with pytest.raises(error) as raised:
        ask(client, **options)
    assert raised.value.param == param and raised.value.request_id in raised.value.message


def test_too_long_prompt_has_openais_code(client):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, "word " * 400)
    assert raised.value.code == "context_length_exceeded"
