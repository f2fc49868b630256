from serve.response_store import ResponseStore


def response(number, text=""):
    return {"id": f"resp_{number}", "text": text}


def kept(store, count):
    return [number for number in range(count) if store.get(f"resp_{number}")]


def test_the_oldest_are_forgotten():
    store = ResponseStore(most=3)
    for number in range(5):
        store.add(response(number), [])
    assert kept(store, 5) == [2, 3, 4]


def test_long_ones_push_out_more():
    store = ResponseStore(most_characters=1000)
    for number in range(5):
        store.add(response(number), [])
    store.add(response(5, "a" * 890), [{"role": "user", "content": "a"}])
    assert kept(store, 6) == [4, 5]
    store.add(response(6), [{"role": "user", "content": "a" * 1000}])
    assert kept(store, 7) == []
    store.add(response(7), [])
    assert kept(store, 8) == [7]


def test_removal_makes_room():
    store = ResponseStore(most_characters=1000)
    for number in range(3):
        store.add(response(number, "a" * 400), [])
        assert store.remove(f"resp_{number}")
    assert not store.remove("resp_0")
    store.add(response(3, "a" * 400), [])
    store.add(response(4, "a" * 400), [])
    assert kept(store, 5) == [3, 4]
