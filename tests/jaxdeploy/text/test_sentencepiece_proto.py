import sentencepiece
from support.internlm2_tokenizer import train_sentencepiece

from jaxdeploy.text.sentencepiece_proto import PieceType, encode_bpe_model, encode_pieces, without_dummy_prefix


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def kind(model: sentencepiece.SentencePieceProcessor, token: int) -> PieceType:
    if model.is_unknown(token):
        return PieceType.UNKNOWN
    if model.is_control(token):
        return PieceType.CONTROL
    return PieceType.BYTE if model.is_byte(token) else PieceType.NORMAL


def test_a_rewritten_model_encodes_alike():
    for prefix in (False, True):
        trained = processor(train_sentencepiece(prefix))
        pieces = [
            (trained.id_to_piece(i), trained.get_score(i), kind(trained, i)) for i in range(trained.get_piece_size())
        ]
        rewritten = processor(encode_bpe_model(pieces, add_dummy_prefix=prefix, remove_extra_whitespaces=False))
        assert rewritten.get_piece_size() == trained.get_piece_size()
        for text in ("the quick  fox", " leading", "ünïcödé 好🙂", "a\nb\t", ""):
            assert rewritten.encode(text) == trained.encode(text)


def test_extra_whitespace_is_removed_where_asked():
    pieces = [("<unk>", 0.0, PieceType.UNKNOWN), ("▁", -1.0, PieceType.NORMAL), ("a", -2.0, PieceType.NORMAL)]
    keeps = processor(encode_bpe_model(pieces, add_dummy_prefix=False, remove_extra_whitespaces=False))
    removes = processor(encode_bpe_model(pieces, add_dummy_prefix=False, remove_extra_whitespaces=True))
    assert keeps.encode("a  a") == [2, 1, 1, 2]
    assert removes.encode("a  a") == [2, 1, 2]


def test_pieces_are_appended():
    trained = train_sentencepiece()
    size = processor(trained).get_piece_size()
    longer = processor(trained + encode_pieces([("<new>", 0.5, PieceType.USER_DEFINED)]))
    assert longer.get_piece_size() == size + 1
    assert longer.piece_to_id("<new>") == size
    assert longer.get_score(size) == 0.5
    assert longer.encode("<new>") == [size]


def test_dummy_prefix_is_switched_off():
    model = train_sentencepiece(add_dummy_prefix=True)
    assert processor(model).encode("the", out_type=str) == ["▁the"]
    assert processor(without_dummy_prefix(model)).encode("the", out_type=str) == ["t", "he"]
