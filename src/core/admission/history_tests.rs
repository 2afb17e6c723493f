use super::*;
use proptest::prelude::*;

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn at(seconds: u64) -> Time {
    Time(seconds * 1_000_000_000)
}

fn client(address: u64, credential: Option<u64>) -> ClientId {
    ClientId { address, credential }
}

/// Uses a tenth of a second every ten seconds between the two moments, beginning with the first.
fn use_calmly(history: &History, who: ClientId, from: u64, to: u64) {
    for second in (from..to).step_by(10) {
        history.earn(who, 0.1, at(second));
    }
}

/// How many requests of this cost are known, asked all at once.
fn burst(history: &History, who: ClientId, cost: f64, now: u64) -> usize {
    (0..100_000).take_while(|_| history.claim(who, cost, at(now)).is_some()).count()
}

#[test]
fn a_client_is_known_once_it_was_first_seen_some_minutes_ago() {
    let (history, who) = (History::default(), client(1, None));
    use_calmly(&history, who, 0, 5 * MINUTE);
    assert_eq!(history.claim(who, 0.1, at(9 * MINUTE)), None);
    assert_eq!(history.standing(who, at(9 * MINUTE)), Standing::Stranger);
    assert!(history.claim(who, 0.1, at(11 * MINUTE)).is_some());
    assert_eq!(history.claim(client(2, None), 0.1, at(11 * MINUTE)), None, "another address");
    assert_eq!(history.claims(), [2, 1]);
}

#[test]
fn a_farm_that_behaves_for_ten_minutes_gains_no_more_than_it_behaved() {
    let history = History::default();
    let farm: Vec<ClientId> = (0..1000).map(|address| client(address, None)).collect();
    let mut used = 0.0;
    for minute in 0..10 {
        for who in &farm {
            history.earn(*who, 0.02, at(minute * MINUTE + who.address % 60));
            used += 0.02;
        }
    }
    let claimed =
        |now: u64| farm.iter().map(|who| 0.02 * burst(&history, *who, 0.02, now) as f64).sum::<f64>();
    let at_once = claimed(12 * MINUTE);
    let half_a_request = 0.01 * farm.len() as f64;
    assert!(at_once <= used + half_a_request, "{at_once} of {used}");
    assert!(at_once >= 0.9 * used, "what it did in calm it may repeat: {at_once} of {used}");
    // Then twice its pace.
    let later: f64 = (1..=6).map(|ten| claimed((12 + 10 * ten) * MINUTE)).sum();
    assert!(later <= 6.0 * HEADROOM * used + half_a_request, "{later} in an hour");
}

#[test]
fn a_farm_that_used_ten_minutes_work_in_one_gains_no_more_than_that_every_ten() {
    let (history, who) = (History::default(), client(1, None));
    (0..60).for_each(|second| history.earn(who, 0.1, at(second)));
    let claimed: usize = (11..=70).map(|minute| burst(&history, who, 0.1, minute * MINUTE)).sum();
    assert!(claimed <= 60 + 2 * 6 * 60 + 1, "{claimed} in an hour");
}

#[test]
fn who_keeps_to_its_habit_is_known_for_as_long_as_the_flood_lasts() {
    let (history, who) = (History::default(), client(1, None));
    use_calmly(&history, who, 0, 5 * HOUR);
    for second in (5 * HOUR..29 * HOUR).step_by(10) {
        assert!(history.claim(who, 0.1, at(second)).is_some(), "after {second} s");
    }
}

#[test]
fn a_flood_by_a_known_client_is_known_for_its_habit_alone() {
    let (history, who) = (History::default(), client(1, None));
    use_calmly(&history, who, 0, 5 * HOUR);
    // A hundred times as much for three hours; its habit is 6 s in ten minutes.
    let known =
        (0..3 * HOUR * 10).filter(|tenth| history.claim(who, 0.1, at(5 * HOUR + tenth / 10)).is_some());
    let claimed = 0.1 * known.count() as f64;
    let most = 6.0 * (1.0 + HEADROOM * 18.0) + 0.05;
    assert!(claimed <= most && claimed >= 0.9 * most, "{claimed} of {most}");
}

#[test]
fn a_habit_fades_over_days_and_never_exceeds_half_a_class() {
    let (history, who) = (History::default(), client(1, None));
    for second in 0..2 * HOUR {
        history.earn(who, 1.0, at(second));
    }
    let habit = |day: u64| match history.standing(who, at(2 * HOUR + day * DAY)) {
        Standing::Known { habit_s, .. } => habit_s,
        Standing::Stranger => 0.0,
    };
    assert!((habit(0) - HABIT_MAX).abs() < 1.0, "{}", habit(0));
    assert!((habit(7) - HABIT_MAX / 2.0).abs() < 2.0, "{}", habit(7));
    assert!((habit(70) - HABIT_MAX / 1024.0).abs() < 0.1, "{}", habit(70));
}

#[test]
fn ten_minutes_that_are_busier_raise_a_habit_at_once_and_quieter_ones_do_not_lower_it() {
    let (history, who) = (History::default(), client(1, None));
    let rate = |now: u64| match history.standing(who, at(now)) {
        Standing::Known { per_second, habit_s, .. } => (per_second, habit_s),
        Standing::Stranger => (0.0, 0.0),
    };
    use_calmly(&history, who, 0, HOUR);
    let (per_second, habit) = rate(HOUR);
    assert!((per_second - 0.1).abs() < 0.002 && (habit - 6.0).abs() < 0.1, "{per_second} {habit}");
    history.earn(who, 0.1, at(HOUR + 30 * MINUTE));
    assert!(rate(2 * HOUR).1 > 5.9);
    (0..500).for_each(|n| history.earn(who, 0.1, at(3 * HOUR + n)));
    assert!((rate(4 * HOUR).1 - 50.0).abs() < 0.5);
}

#[test]
fn an_office_a_token_and_an_operator_that_moved_keep_theirs() {
    let history = History::default();
    // An office behind one address, with a token each; a token from many addresses; an operator.
    for person in 0..5 {
        use_calmly(&history, client(1, Some(100 + person)), person, 2 * HOUR);
    }
    for second in (0..2 * HOUR).step_by(10) {
        history.earn(client(1000 + second, Some(7)), 0.1, at(second));
    }
    use_calmly(&history, client(3, Some(8)), 0, 2 * HOUR);
    let known = |who: ClientId| history.claim(who, 0.1, at(2 * HOUR)).is_some();
    assert!(known(client(1, Some(100))) && known(client(1, None)) && known(client(1, Some(999))));
    assert!(known(client(5_000_000, Some(7))), "from an address never seen before");
    assert!(known(client(4, Some(8))), "restarted with another address");
    assert!(!known(client(4, Some(9))) && !known(client(4, None)));
}

#[test]
fn each_of_a_claims_two_sides_weighs_what_it_used_and_an_unknown_one_as_much_as_the_other() {
    let history = History::default();
    for second in (0..HOUR).step_by(10) {
        history.earn(client(1, Some(10)), 0.1, at(second));
        history.earn(client(1, Some(11)), 0.1, at(second));
    }
    let claim = |who| history.claim(who, 0.1, at(HOUR)).unwrap();
    let both = claim(client(1, Some(10)));
    assert!((both.address - 12.0).abs() < 0.2 && (both.credential - 6.0).abs() < 0.1, "{both:?}");
    let moved = claim(client(2, Some(10)));
    assert!((moved.address - 6.0).abs() < 0.1 && (moved.credential - 6.0).abs() < 0.1, "{moved:?}");
}

#[test]
fn what_was_not_served_is_given_back() {
    let (history, who) = (History::default(), client(1, None));
    use_calmly(&history, who, 0, HOUR);
    let claim = |cost| history.claim(who, cost, at(HOUR));
    let claims: Vec<Claim> = std::iter::from_fn(|| claim(0.1)).collect();
    for claim in &claims {
        history.refund(who, *claim, 1.0);
    }
    let again: Vec<Claim> = std::iter::from_fn(|| claim(0.1)).collect();
    assert!(again.len().abs_diff(claims.len()) <= 1, "{}", claims.len());
    for claim in &again {
        history.refund(who, *claim, 0.5);
    }
    let half = burst(&history, who, 0.1, HOUR);
    assert!(half.abs_diff(claims.len() / 2) <= 1, "of one that was half as dear, the other half: {half}");
    for claim in claims.iter().cycle().take(3 * claims.len()) {
        history.refund(who, *claim, 1.0);
    }
    assert!(burst(&history, who, 0.1, HOUR) <= claims.len() + 1, "never more than a habit");
}

#[test]
fn nothing_is_given_back_to_whom_nothing_was_taken_from() {
    let history = History::default();
    use_calmly(&history, client(1, None), 0, HOUR);
    use_calmly(&history, client(2, Some(7)), 0, HOUR);
    burst(&history, client(1, None), 0.1, HOUR);
    // The token comes from that address and leaves before it is served, time and again.
    for _ in 0..1000 {
        let who = client(1, Some(7));
        let claim = history.claim(who, 0.1, at(HOUR)).unwrap();
        assert_eq!(claim.paid_by, [false, true]);
        history.refund(who, claim, 1.0);
    }
    assert_eq!(history.claim(client(1, None), 0.1, at(HOUR)), None);
}

#[test]
fn an_allowance_that_is_used_up_is_said_to_be() {
    let (history, who) = (History::default(), client(1, Some(2)));
    use_calmly(&history, who, 0, HOUR);
    let is_used_up =
        |now: u64| matches!(history.standing(who, at(now)), Standing::Known { used_up: true, .. });
    assert!(!is_used_up(HOUR));
    burst(&history, who, 0.1, HOUR);
    assert!(is_used_up(HOUR) && !is_used_up(HOUR + MINUTE));
}

#[test]
fn strangers_are_counted_over_the_last_minutes() {
    let history = History::default();
    for address in 0..214_u64 {
        history.claim(client(address.wrapping_mul(0x9E37_79B9_7F4A_7C15), None), 0.1, at(address % 60));
    }
    assert!(history.strangers(at(60)).abs_diff(214) <= 10, "{}", history.strangers(at(60)));
    assert_eq!(history.strangers(at(20 * MINUTE)), 0);
    assert!(history.is_empty(), "who waits leaves no adjustment log");
}

#[test]
fn what_was_written_is_what_was_known_and_time_goes_on_meanwhile() {
    let (history, wall) = (History::default(), WallMs(1_763_000_000_000));
    history.set_clock(Time::ZERO, wall);
    for address in 0..500 {
        use_calmly(&history, client(address, Some(10_000 + address)), 0, HOUR);
    }
    let bytes = history.to_bytes(42);
    let next = History::default();
    // Three days later, by a process that has run for an hour.
    next.set_clock(at(HOUR), WallMs(wall.0 + 3 * DAY * 1000));
    assert_eq!(next.restore(&bytes, 42, at(HOUR)), Ok(1000));
    assert_eq!(next.standing(client(7, None), at(HOUR)), history.standing(client(7, None), at(3 * DAY)));
    assert_eq!(next.restore(&bytes, 43, at(HOUR)), Err(HistoryError::OtherKey));
    assert_eq!(next.restore(&bytes[1..], 42, at(HOUR)), Err(HistoryError::Broken));
    assert_eq!(next.restore(&bytes[..bytes.len() - 1], 42, at(HOUR)), Err(HistoryError::Broken));
    assert_eq!(next.len(), 1000, "what is not taken in changes nothing");
}

#[test]
fn who_came_while_the_file_was_read_keeps_both_pasts() {
    let history = History::default();
    for address in 0..500 {
        use_calmly(&history, client(address, None), 0, HOUR);
    }
    let next = History::default();
    for address in 400..600 {
        next.earn(client(address, None), 0.5, at(2 * HOUR));
    }
    assert_eq!(next.restore(&history.to_bytes(1), 1, at(2 * HOUR)), Ok(500));
    assert_eq!(next.len(), 600);
    assert_eq!(next.standing(client(7, None), at(2 * HOUR)), history.standing(client(7, None), at(2 * HOUR)));
    assert!(next.claim(client(450, None), 0.1, at(2 * HOUR)).is_some(), "known from before");
    assert!(next.claim(client(550, None), 0.1, at(2 * HOUR)).is_none(), "new");
    (0..9).for_each(|n| next.earn(client(450, None), 0.5, at(2 * HOUR + n)));
    let Standing::Known { habit_s, .. } = next.standing(client(450, None), at(2 * HOUR + 9)) else {
        panic!()
    };
    assert!((habit_s - 6.0).abs() < 0.1, "{habit_s}: its window goes on");
    (0..9).for_each(|n| next.earn(client(450, None), 0.5, at(2 * HOUR + n)));
    let Standing::Known { habit_s, .. } = next.standing(client(450, None), at(2 * HOUR + 9)) else {
        panic!()
    };
    assert!((habit_s - 9.5).abs() < 0.1, "{habit_s}: with what it used before the file was read");
}

#[test]
fn a_file_in_any_order_is_read_and_what_has_not_changed_need_not_be_written() {
    let history = History::default();
    assert!(!history.take_changed());
    (0..5000).for_each(|n| history.earn(client(spread(n), None), 0.1, at(n)));
    assert!(history.take_changed() && !history.take_changed());
    let mut bytes = history.to_bytes(1);
    bytes.truncate(bytes.len() - SUM_BYTES);
    let (records, _) = bytes[HEAD_BYTES..].as_chunks_mut::<RECORD_BYTES>();
    records.sort_unstable();
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    let next = History::default();
    assert_eq!(next.restore(&bytes, 1, at(2 * HOUR)), Ok(5000));
    assert!(next.to_bytes(1) == history.to_bytes(1));
    assert!(!next.take_changed());
    history.claim(client(1, None), 0.1, at(2 * HOUR));
    assert!(history.take_changed());
}

#[test]
fn a_start_with_a_clock_that_is_behind_owes_and_forgets_nothing_and_nor_does_the_next_with_a_right_one() {
    let right = 1_763_000_000_000;
    let history = History::default();
    history.set_clock(Time::ZERO, WallMs(right));
    use_calmly(&history, client(1, None), 0, HOUR);
    let habit = |history: &History, now: Time| match history.standing(client(1, None), now) {
        Standing::Known { habit_s, .. } => habit_s,
        Standing::Stranger => 0.0,
    };
    let before = habit(&history, at(HOUR));
    let mut bytes = history.to_bytes(1);
    for clock in [right - 400 * DAY * 1000, right + HOUR * 1000] {
        let next = History::default();
        next.set_clock(Time::ZERO, WallMs(clock));
        next.restore(&bytes, 1, Time::ZERO).unwrap();
        next.earn(client(1, None), 0.1, Time::ZERO);
        bytes = next.to_bytes(1);
        assert!(
            (habit(&next, Time::ZERO) / before - 1.0).abs() < 1e-3,
            "{clock}: {}",
            habit(&next, Time::ZERO)
        );
        assert_eq!(burst(&next, client(1, None), 0.1, 1), 60, "{clock}");
        // A window that lies ahead does not go on until it comes.
        use_calmly(&next, client(1, None), 0, HOUR);
        assert!(habit(&next, at(HOUR)) <= before + 0.101, "{clock}: {}", habit(&next, at(HOUR)));
    }
}

#[test]
fn a_crowd_of_passers_by_does_not_push_out_who_has_settled() {
    let history = History::default();
    // All in one shard.
    let digest = |n: u64| spread(n) / SHARDS as u64 * SHARDS as u64;
    let known: Vec<ClientId> = (0..2000).map(|n| client(digest(n), None)).collect();
    for who in &known {
        history.earn(*who, 0.1, at(0));
    }
    for passer in 0..40_000_u64 {
        history.earn(client(digest(1_000_000 + passer), None), 0.001, at(20 * MINUTE + passer / 1000));
    }
    assert!(history.len() <= SHARD_MAX, "{}", history.len());
    let kept = known.iter().filter(|who| history.claim(**who, 0.1, at(30 * MINUTE)).is_some()).count();
    assert_eq!(kept, known.len());
}

/// A digest as good as a keyed one.
fn spread(n: u64) -> u64 {
    let mixed = (n ^ n >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ mixed >> 32
}

proptest! {
    /// Whatever is used, claimed and given back when: ahead of strangers a client gets at most its habit, once and
    /// then as fast as it refills, and half a request.
    #[test]
    fn what_is_claimed_was_used_in_calm(
        uses in prop::collection::vec((0_u64..6 * HOUR, 0.001..5.0_f64), 1..60),
        asks in prop::collection::vec((0_u64..12 * HOUR, 0.001..5.0_f64), 1..200),
    ) {
        let (history, who) = (History::default(), client(1, None));
        let mut uses = uses;
        uses.sort_by_key(|used| used.0);
        for (second, seconds) in &uses {
            history.earn(who, *seconds, at(*second));
        }
        let used_from = |begin: u64| -> f64 {
            let within = uses.iter().filter(|(second, _)| (begin..begin + 600).contains(second));
            within.map(|(_, seconds)| seconds).sum()
        };
        let busiest = uses.iter().map(|(second, _)| used_from(*second)).fold(0.0, f64::max).min(HABIT_MAX);
        let mut asks = asks;
        asks.sort_by_key(|asked| asked.0);
        let (mut claimed, mut dearest) = (0.0, 0.0_f64);
        let begin = 6 * HOUR;
        for (second, cost) in &asks {
            if history.claim(who, *cost, at(begin + second)).is_some() {
                claimed += cost;
                dearest = dearest.max(*cost);
            }
        }
        let windows = asks.last().map_or(0.0, |asked| asked.0 as f64 / 600.0);
        let most = busiest * (1.0 + HEADROOM * windows) + dearest / 2.0;
        prop_assert!(claimed <= most * 1.001, "{} of {}", claimed, most);
    }

    /// A client that asks in a flood as it did in calm is known for as long as the flood lasts, and its past stays as
    /// it was.
    #[test]
    fn who_keeps_its_pace_never_runs_out(
        gap in 1_u64..100,
        jitter in prop::collection::vec(0.5..1.5_f64, 50),
        costs in prop::collection::vec(0.5..1.5_f64, 50),
        calm_s in 12 * MINUTE..3 * HOUR,
        flood_s in HOUR..24 * HOUR,
    ) {
        let (history, who) = (History::default(), client(1, None));
        let mut second = 0.0;
        for (jitter, cost) in jitter.iter().cycle().zip(costs.iter().cycle()) {
            if second >= calm_s as f64 {
                break;
            }
            history.earn(who, 0.1 * cost, Time::from_secs_f64(second));
            second += gap as f64 * jitter;
        }
        let habit = |second: f64| match history.standing(who, Time::from_secs_f64(second)) {
            Standing::Known { habit_s, .. } => habit_s,
            Standing::Stranger => 0.0,
        };
        let before = habit(second);
        let end = second + flood_s as f64;
        for (jitter, cost) in jitter.iter().cycle().zip(costs.iter().cycle()) {
            if second >= end {
                break;
            }
            let claim = history.claim(who, 0.1 * cost, Time::from_secs_f64(second));
            prop_assert!(claim.is_some(), "after {} s of flood", second - (end - flood_s as f64));
            second += gap as f64 * jitter;
        }
        prop_assert!(habit(second) <= before, "a flood makes no habit");
    }

    /// No file makes a record that could not have come about, or a panic.
    #[test]
    fn whatever_is_restored_is_sound(words in prop::collection::vec(any::<[u32; 10]>(), 0..20)) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&9_u64.to_le_bytes());
        words.iter().flatten().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        let history = History::default();
        history.set_clock(Time::ZERO, WallMs(1_763_000_000_000));
        let taken = history.restore(&bytes, 9, Time::ZERO);
        prop_assert!(taken.is_ok_and(|taken| taken <= words.len()));
        for [low, high, ..] in words {
            let who = client(u64::from(high) << 32 | u64::from(low), None);
            if let Standing::Known { habit_s, left_s, .. } = history.standing(who, at(1)) {
                prop_assert!(habit_s <= HABIT_MAX && left_s <= habit_s);
            }
            history.earn(who, 1.0, at(2));
            let _ = history.claim(who, 1.0, at(3));
        }
    }
}

#[test]
fn strangers_have_an_eighth_of_one_loop_and_all_but_one_in_ten_of_what_is_done_side_by_side() {
    let strangers_have =
        |aside: bool| [0, 1, 2, 3, 8, 9, 10, 17, 24, u32::MAX].map(|n| n - kept_free(n, aside));
    assert_eq!(strangers_have(false), [0, 1, 1, 2, 2, 2, 2, 3, 3, u32::MAX / 8 + 1]);
    assert_eq!(strangers_have(true), [0, 1, 2, 3, 8, 9, 9, 16, 23, u32::MAX - 1]);
}
