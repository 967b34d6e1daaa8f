"""Slow twins of the method, in float64 and plain loops, written from the equations and not from the code."""

import math

import torch


def rows_of(lengths):
    return torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


def by_row(rows, *streams):
    """Lists of each sequence's values."""
    groups = {}
    for place, row in enumerate(rows.tolist()):
        groups.setdefault(row, []).append(tuple(stream[place].item() for stream in streams))
    return list(groups.values())


def slow_fixed_spans(rows, size):
    spans, span, seen = [], -1, {}
    for row in rows.tolist():
        count = seen.get(row, 0)
        span += count % size == 0
        seen[row] = count + 1
        spans.append(span)
    return spans


def slow_newline_spans(rows, ends_line, min_tokens, max_tokens, size):
    """Lines -> short ones joined to the next -> long ones cut."""
    spans, span = [], 0
    for group in by_row(rows, ends_line):
        ends = [end for (end,) in group]
        if not any(ends):
            pieces = [[None] * min(size, len(ends) - i) for i in range(0, len(ends), size)]
        else:
            lines, line = [], []
            for end in ends:
                line.append(end)
                if end:
                    lines.append(line)
                    line = []
            lines += [line] if line else []
            joined = []
            for line in lines:
                if joined and len(joined[-1]) < min_tokens:
                    joined[-1] = joined[-1] + line
                else:
                    joined.append(line)
            pieces = [part[i : i + max_tokens] for part in joined for i in range(0, len(part), max_tokens)]
        for piece in pieces:
            spans += [span] * len(piece)
            span += 1
    return spans


def slow_gate(logp, behaviour, spans, tau, statistic):
    shift = [p - o for p, o in zip(logp.double().tolist(), behaviour.double().tolist())]
    members = {}
    for place, span in enumerate(spans.tolist()):
        members.setdefault(span, []).append(shift[place])
    drift = {
        "abs_mean": lambda d: abs(math.fsum(d) / len(d)),
        "mean_abs": lambda d: math.fsum(abs(x) for x in d) / len(d),
        "rms": lambda d: math.sqrt(math.fsum(x * x for x in d) / len(d)),
    }[statistic]
    gate = {span: math.exp(-tau * drift(values)) for span, values in members.items()}
    return torch.tensor([gate[span] for span in spans.tolist()], dtype=torch.float64)


def slow_unit_mean(weights, groups):
    weights, groups = weights.double().tolist(), groups.tolist()
    members = {}
    for weight, group in zip(weights, groups):
        members.setdefault(group, []).append(weight)
    mean = {group: math.fsum(values) / len(values) for group, values in members.items()}
    return torch.tensor([w / mean[g] for w, g in zip(weights, groups)], dtype=torch.float64)


def slow_sampled_token_loss(logp, behaviour, teacher, advantage, clip, dual_clip):
    losses = []
    for p, o, q in zip(logp, behaviour.double(), teacher.double()):
        gain = q - (o if advantage == "frozen" else p.detach())
        ratio = torch.exp(p - o)
        clipped = min(max(ratio.item(), 1 - clip), 1 + clip)
        inside = 1 - clip <= ratio.item() <= 1 + clip
        one, other = ratio * gain, (ratio if inside else torch.tensor(clipped, dtype=torch.float64)) * gain
        loss = -(one if one.item() <= other.item() else other)
        if gain < 0 and loss.item() > -dual_clip * gain.item():
            loss = -dual_clip * gain
        losses.append(loss + 0 * p)  # a clipped token has gradient 0, not none
    return torch.stack(losses)


def slow_topk_reverse_kl(student, teacher):
    losses = []
    for s, t in zip(student, teacher.double()):
        p, q = torch.exp(s) / torch.exp(s).sum(), torch.exp(t) / torch.exp(t).sum()
        losses.append((p * (p.log() - q.log())).sum())
    return torch.stack(losses)


def slow_logprobs(hidden, weight, temperature):
    """The [N, V] tensor that the package never makes."""
    return torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
