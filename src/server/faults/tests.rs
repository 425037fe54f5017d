use super::*;

fn key(region: &str, node: &str) -> NodeKey {
    NodeKey {
        region: region.parse().unwrap(),
        node: node.parse().unwrap(),
    }
}

#[test]
fn a_lifetime_is_within_its_limits() {
    let step = Duration::from_millis(1);
    for good in [MIN_LIFE, DEFAULT_LIFE, MAX_LIFE] {
        assert_eq!(check_life(good), Ok(()));
    }
    for bad in [MIN_LIFE - step, MAX_LIFE + step] {
        assert_eq!(check_life(bad), Err(FaultError::Life(bad)));
    }
    let text = FaultError::Life(Duration::from_millis(99)).to_string();
    assert_eq!(text, "a fault for 99ms: expected 100ms to 1h");
}

#[test]
fn values_are_within_their_limits() {
    let with = || Selector::Clients;
    let delay = |ms, jitter_ms| Fault::Delay {
        with: with(),
        ms,
        jitter_ms,
    };
    let loss = |percent| Fault::Loss {
        with: with(),
        percent,
        direction: Direction::Both,
    };
    let slow = |ms| Fault::StoreSlow { ms };
    let clock = |ms| Fault::Clock { ms };
    for good in [
        delay(1, 0),
        delay(0, 1),
        delay(MAX_DELAY_MS, MAX_DELAY_MS),
        loss(1),
        loss(100),
        slow(1),
        slow(MAX_DELAY_MS),
        clock(MAX_CLOCK_MS),
        clock(-MAX_CLOCK_MS),
    ] {
        assert_eq!(good.check(), Ok(()), "{good}");
    }
    for bad in [
        delay(0, 0),
        delay(MAX_DELAY_MS + 1, 0),
        delay(1, MAX_DELAY_MS + 1),
        loss(0),
        loss(101),
        slow(0),
        slow(MAX_DELAY_MS + 1),
        clock(0),
        clock(MAX_CLOCK_MS + 1),
        clock(-MAX_CLOCK_MS - 1),
        clock(i64::MIN),
    ] {
        assert!(matches!(bad.check(), Err(FaultError::Value { .. })), "{bad}");
    }
}

#[test]
fn faults_have_one_form() {
    let forms = [
        (
            Fault::Cut {
                with: Selector::Region("eu-west".parse().unwrap()),
                direction: Direction::In,
            },
            r#"{"kind":"cut","with":{"region":"eu-west"},"direction":"in"}"#,
        ),
        (
            Fault::Delay {
                with: Selector::Node("a".parse().unwrap()),
                ms: 80,
                jitter_ms: 5,
            },
            r#"{"kind":"delay","with":{"node":"a"},"ms":80,"jitter_ms":5}"#,
        ),
        (
            Fault::Loss {
                with: Selector::Clients,
                percent: 10,
                direction: Direction::Out,
            },
            r#"{"kind":"loss","with":"clients","percent":10,"direction":"out"}"#,
        ),
        (Fault::Pause, r#"{"kind":"pause"}"#),
        (Fault::StoreSlow { ms: 3 }, r#"{"kind":"store-slow","ms":3}"#),
        (Fault::Clock { ms: -3 }, r#"{"kind":"clock","ms":-3}"#),
    ];
    for (fault, form) in forms {
        assert_eq!(serde_json::to_string(&fault).unwrap(), form);
        assert_eq!(serde_json::from_str::<Fault>(form).unwrap(), fault);
        assert!(form.contains(&format!("\"{}\"", fault.kind())));
    }
    let short = r#"{"kind":"cut","with":"clients"}"#;
    let both = Fault::Cut {
        with: Selector::Clients,
        direction: Direction::Both,
    };
    assert_eq!(serde_json::from_str::<Fault>(short).unwrap(), both);
}

#[test]
fn a_selector_has_the_nodes_that_it_names() {
    let region = Selector::Region("eu".parse().unwrap());
    assert!(region.has(&key("eu", "a")) && !region.has(&key("us", "b")));
    let node = Selector::Node("a".parse().unwrap());
    assert!(node.has(&key("eu", "a")) && !node.has(&key("eu", "b")));
    assert!(!Selector::Clients.has(&key("eu", "a")));
}

#[test]
fn the_way_around_the_world_is_laid_once_and_does_not_end() {
    let regions = Regions::built_in();
    let here = Here {
        node: key("us-east", "us-east-core-1"),
        data: PathBuf::new(),
        store: true,
        clients: false,
    };
    let config = FaultsConfig {
        allowed: true,
        wan: true,
    };
    let faults = Faults::new(&config, here.clone(), &regions);
    faults.lay_wan(&regions);
    let of = |faults: &Faults| -> Vec<String> {
        let list = faults.list().into_iter();
        list.map(|injected| injected.fault.to_string()).collect()
    };
    assert_eq!(
        of(&faults),
        [
            "delay of 97 ms to region ap-south",
            "delay of 41 ms to region eu-west"
        ]
    );
    assert_eq!(faults.end(), None);
    assert_eq!(faults.list().len(), 2);
    let without = Faults::new(&FaultsConfig::default(), here, &regions);
    assert!(of(&without).is_empty());
}
