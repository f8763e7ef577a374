"""Names by index: what comes, is renamed and goes, and what the workers are told."""

import asyncio

from spliffd import ipc
from spliffd.interfaces.names import MAX_GONE, TELL_SECONDS, Names


async def told(names: Names, messages: list[ipc.Interfaces]) -> dict[int, str]:
    await asyncio.sleep(10 * TELL_SECONDS)
    return messages[-1].names if messages else {}


async def test_many_changes_are_one_message():
    messages: list[ipc.Interfaces] = []
    names = Names(messages.append)
    for index in range(211):
        names.set(index, f"veth{index}")
    names.set(7, "renamed")
    assert (await told(names, messages))[7] == "renamed"
    assert len(messages) == 1
    assert len(messages[0].names) == 211


async def test_what_does_not_change_is_not_told():
    messages: list[ipc.Interfaces] = []
    names = Names(messages.append)
    names.set(1, "lo")
    await told(names, messages)
    names.set(1, "lo")
    names.remove(1)
    names.remove(99)
    assert await told(names, messages) == {1: "lo"}
    assert len(messages) == 1


async def test_names_outlive_their_interface_until_the_index_is_used_again():
    messages: list[ipc.Interfaces] = []
    names = Names(messages.append)
    names.set(5, "old")
    names.remove(5)
    assert names.message().names == {5: "old"}
    names.set(5, "new")
    assert await told(names, messages) == {5: "new"}
    names.remove(5)
    names.set(6, "other")
    assert await told(names, messages) == {5: "new", 6: "other"}


async def test_the_dead_do_not_fill_the_memory():
    names = Names(lambda message: None)
    for index in range(3 * MAX_GONE):
        names.set(index, f"veth{index}")
        names.remove(index)
    assert sorted(names.message().names) == list(range(2 * MAX_GONE, 3 * MAX_GONE))
    names.close()


async def test_nobody_is_told_after_the_end():
    messages: list[ipc.Interfaces] = []
    names = Names(messages.append)
    names.set(1, "lo")
    names.close()
    names.set(2, "eth0")
    assert await told(names, messages) == {}
